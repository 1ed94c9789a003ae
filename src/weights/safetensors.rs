//! The header of a safetensors file: an 8-byte little-endian length, that many bytes of JSON, then the tensors.
//!
//! The `safetensors` crate parses each entry; the checks are made here, because its errors name neither the tensor nor
//! the two values that disagree, and because it takes the last of two tensors of one name in silence.

use super::{Entry, TensorInfo};
use crate::{DType, Error, Result};
use safetensors::tensor::{Dtype, TensorInfo as RawInfo};
use serde::de::{Deserializer, MapAccess, Visitor};
use std::path::Path;

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// Names and places of all tensors of one file, in the order of the header.
pub(super) fn read_header(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Entry)>> {
    let bad = |what: String| Error::file(path, what);
    let len = bytes
        .first_chunk::<8>()
        .map(|b| u64::from_le_bytes(*b))
        .ok_or_else(|| bad(format!("header length: expected 8 bytes, the file has {}", bytes.len())))?;
    let room = bytes.len() as u64 - 8;
    if len > MAX_HEADER {
        return Err(bad(format!("header length: expected at most {MAX_HEADER} bytes, found {len}")));
    }
    if len > room {
        return Err(bad(format!("header length: {len} bytes, but only {room} follow it")));
    }
    let (header, data) = bytes[8..].split_at(len as usize);
    let Header(entries) = serde_json::from_slice(header).map_err(|e| bad(format!("header: {e}")))?;

    let mut tensors = Vec::with_capacity(entries.len());
    for (name, raw) in entries {
        let entry = check(&name, raw, data.len(), 8 + header.len()).map_err(bad)?;
        tensors.push((name, entry));
    }
    super::check_overlap(path, &tensors)?;
    let end = tensors.iter().map(|(_, e)| e.range.end).max().unwrap_or(8 + header.len());
    if end != bytes.len() {
        return Err(bad(format!("tensors end at byte {end}, but the file has {} bytes", bytes.len())));
    }
    Ok(tensors)
}

/// Checks one tensor against the data section of `data_len` bytes that begins at byte `data_start` of the file.
fn check(name: &str, raw: RawInfo, data_len: usize, data_start: usize) -> Result<Entry, String> {
    let (begin, end) = raw.data_offsets;
    if begin > end || end > data_len {
        return Err(format!("tensor {name}: offsets [{begin}, {end}] outside the data, which has {data_len} bytes"));
    }
    let elements = raw
        .shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .ok_or_else(|| format!("tensor {name}: shape {:?} has too many elements", raw.shape))?;
    let want = elements.checked_mul(raw.dtype.bitsize()).filter(|bits| bits % 8 == 0).ok_or_else(|| {
        format!("tensor {name}: shape {:?} of {:?} is no whole number of bytes", raw.shape, raw.dtype)
    })? / 8;
    if want != end - begin {
        return Err(format!(
            "tensor {name}: {:?} of {:?} takes {want} bytes, but its offsets [{begin}, {end}] hold {}",
            raw.shape,
            raw.dtype,
            end - begin
        ));
    }
    let (dtype, foreign) = match raw.dtype {
        Dtype::F32 => (DType::F32, None),
        Dtype::F16 => (DType::F16, None),
        Dtype::BF16 => (DType::BF16, None),
        Dtype::U32 => (DType::U32, None),
        Dtype::BOOL | Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::I32 | Dtype::I64 | Dtype::U64 => {
            (DType::U32, Some(format!("{:?}", raw.dtype)))
        }
        other => return Err(format!("tensor {name}: type {other:?}: expected F32, F16 or BF16")),
    };
    let range = data_start + begin..data_start + end;
    Ok(Entry { info: TensorInfo { dtype, shape: raw.shape }, foreign, shard: 0, range })
}

/// The tensors of a header, in order, without its `__metadata__`. Two of one name are an error.
struct Header(Vec<(String, RawInfo)>);

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    let info = map
                        .next_value::<RawInfo>()
                        .map_err(|e| serde::de::Error::custom(format!("tensor {name}: {e}")))?;
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("tensor {name}: appears twice")));
                    }
                    entries.push((name, info));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
