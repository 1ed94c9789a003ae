//! GGUF versions 2 and 3 (ggml's `docs/gguf.md`): metadata, tensor directory, aligned data.
//!
//! Metadata of another type than the one asked for is an [`Error::File`] that names the key and both types.

use super::{Bytes, Entry, TensorInfo};
use crate::{DType, Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First bytes of every GGUF file.
pub const MAGIC: &[u8] = b"GGUF";

/// Longest key or tensor name; the format says 65535 and 64.
const MAX_NAME: u64 = 65535;

/// How deep arrays of arrays may nest. Known files have none.
const MAX_NESTING: u32 = 4;

/// Type of a metadata value, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Fewest bytes of one value.
    const fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }
}

/// Where a metadata value lies in the file. Nothing is copied on opening: a vocabulary of 150,000 strings stays where
/// it is until a tokenizer asks for it.
#[derive(Clone, Debug)]
struct Place {
    kind: Kind,
    /// Type of the elements of an array.
    of: Kind,
    /// Elements of an array, 1 otherwise.
    len: u64,
    /// First byte of the value, or of an array's first element.
    at: usize,
}

/// The metadata of a GGUF file.
///
/// A getter gives `None` for a key that the file lacks and an error for a value of another type.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<Bytes>,
    values: HashMap<String, Place>,
    keys: Vec<String>,
}

impl Gguf {
    /// The file, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys in the order of the file.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// Whether the file has this key.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// `general.architecture`, which every model file must have.
    pub fn architecture(&self) -> Result<&str> {
        self.str("general.architecture")?.ok_or_else(|| self.missing("general.architecture"))
    }

    /// The error for a key that a caller cannot do without.
    pub fn missing(&self, key: &str) -> Error {
        Error::file(&self.path, format!("metadata {key}: not in the file"))
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.one(key, "a string", |kind, c| if kind == Kind::Str { c.text(key).map(Some) } else { Ok(None) })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.one(key, "a bool", |kind, c| if kind == Kind::Bool { Ok(Some(c.u8(key)? != 0)) } else { Ok(None) })
    }

    /// An integer that is not negative, of any width.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.one(key, "an integer from 0 up", |kind, c| Ok(c.integer(kind, key)?.and_then(|x| u64::try_from(x).ok())))
    }

    /// A number of any type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.one(key, "a number", |kind, c| c.number(kind, key))
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.many(key, "strings", |kind, c| if kind == Kind::Str { c.text(key).map(Some) } else { Ok(None) })
    }

    /// An array of integers of any width.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.many(key, "integers", |kind, c| Ok(c.integer(kind, key)?.and_then(|x| i64::try_from(x).ok())))
    }

    /// An array of numbers of any type.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.many(key, "numbers", |kind, c| Ok(c.number(kind, key)?.map(|x| x as f32)))
    }

    /// Reads one value that is no array with `read`, which gives `None` for a type it does not take.
    fn one<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Kind, &mut Cursor<'a>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Some(place) = self.values.get(key) else { return Ok(None) };
        match read(place.kind, &mut self.cursor(place.at))? {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong_type(key, expected, place)),
        }
    }

    /// Reads an array, element by element.
    fn many<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Kind, &mut Cursor<'a>) -> Result<Option<T>>,
    ) -> Result<Option<Vec<T>>> {
        let Some(place) = self.values.get(key) else { return Ok(None) };
        if place.kind != Kind::Array {
            return Err(self.wrong_type(key, &format!("an array of {expected}"), place));
        }
        let mut cursor = self.cursor(place.at);
        // `len` elements were found to lie within the file on opening, so it bounds the allocation.
        let mut values = Vec::with_capacity(place.len as usize);
        for _ in 0..place.len {
            match read(place.of, &mut cursor)? {
                Some(value) => values.push(value),
                None => return Err(self.wrong_type(key, &format!("an array of {expected}"), place)),
            }
        }
        Ok(Some(values))
    }

    fn cursor(&self, at: usize) -> Cursor<'_> {
        Cursor { path: &self.path, bytes: &self.bytes, at }
    }

    fn wrong_type(&self, key: &str, expected: &str, place: &Place) -> Error {
        let found = match place.kind {
            Kind::Array => format!("an array of {} {:?}", place.len, place.of),
            other => format!("{other:?}"),
        };
        Error::file(&self.path, format!("metadata {key}: expected {expected}, found {found}"))
    }

    /// The other files of a split GGUF of which `path` is the first.
    pub(super) fn other_parts(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let count = self.uint("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(Vec::new());
        }
        match part_of(path) {
            Some((stem, 1, of)) if of == count => {
                Ok((2..=of).map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{of:05}.gguf"))).collect())
            }
            Some((stem, part, of)) if of == count => Err(Error::file(
                path,
                format!("part {part} of {count}: open the first part, {stem}-00001-of-{count:05}.gguf"),
            )),
            _ => Err(Error::file(
                path,
                format!("split.count is {count}: expected a file name that ends with -00001-of-{count:05}.gguf"),
            )),
        }
    }
}

/// Stem, part and number of parts of a name like `model-00001-of-00003.gguf`.
pub(super) fn part_of(path: &Path) -> Option<(String, u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, of) = name.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |s: &str| if s.len() == 5 { s.parse::<u64>().ok() } else { None };
    Some((stem.to_owned(), number(part)?, number(of)?))
}

/// Metadata and tensors of a file that begins with [`MAGIC`].
pub(super) fn read(path: &Path, bytes: Arc<Bytes>) -> Result<(Gguf, Vec<(String, Entry)>)> {
    let mut c = Cursor { path, bytes: &bytes, at: MAGIC.len() };
    let version = c.u32("version")?;
    if version != 2 && version != 3 {
        let hint = if version & 0xffff == 0 { " (a big-endian file)" } else { "" };
        return Err(c.bad(format!("version: expected 2 or 3, found {version}{hint}")));
    }
    let n_tensors = c.u64("tensor count")?;
    let n_values = c.u64("metadata count")?;
    // A tensor takes at least name length, dimensions, one dimension, type and offset; a value its key, type and a byte.
    c.check_count("tensor count", n_tensors, 8 + 4 + 8 + 4 + 8)?;
    c.check_count("metadata count", n_values, 8 + 4 + 1)?;

    let (mut values, mut keys) = (HashMap::new(), Vec::new());
    for _ in 0..n_values {
        let key = c.name("metadata key")?.to_owned();
        let place = c.value(&key)?;
        if values.insert(key.clone(), place).is_some() {
            return Err(c.bad(format!("metadata {key}: appears twice")));
        }
        keys.push(key);
    }
    let gguf = Gguf { path: path.to_path_buf(), bytes: bytes.clone(), values, keys };
    let alignment = gguf.uint("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(c.bad(format!("metadata general.alignment: expected a power of two, found {alignment}")));
    }

    let mut directory = Vec::new();
    for _ in 0..n_tensors {
        directory.push(c.tensor(alignment)?);
    }
    let data_start = c.at.next_multiple_of(alignment as usize);
    let mut tensors = Vec::with_capacity(directory.len());
    let mut seen = std::collections::HashSet::new();
    for (name, info, offset) in directory {
        if !seen.insert(name.clone()) {
            return Err(c.bad(format!("tensor {name}: appears twice")));
        }
        let range = c.tensor_range(&name, &info, offset, data_start)?;
        tensors.push((name, Entry { info, foreign: None, shard: 0, range }));
    }
    super::check_overlap(path, &tensors)?;
    Ok((gguf, tensors))
}

/// A reading position; every read is checked against the end of the file.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

macro_rules! numbers {
    ($($name:ident: $ty:ty),*) => {$(
        fn $name(&mut self, what: &str) -> Result<$ty> {
            let raw = self.take(size_of::<$ty>() as u64, what)?;
            // `take` gave exactly as many bytes as asked for.
            Ok(<$ty>::from_le_bytes(raw.try_into().unwrap_or_default()))
        }
    )*};
}

impl<'a> Cursor<'a> {
    numbers! { u8: u8, i8: i8, u16: u16, i16: i16, u32: u32, i32: i32, u64: u64, i64: i64, f32: f32, f64: f64 }

    fn bad(&self, what: String) -> Error {
        Error::file(self.path, what)
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            let (at, left) = (self.at, self.left());
            return Err(self.bad(format!("{what}: {n} bytes at byte {at}, but only {left} are left: cut short?")));
        }
        let start = self.at;
        self.at += n as usize;
        Ok(&self.bytes[start..self.at])
    }

    /// Refuses a count of things, each of at least `min_bytes`, that the rest of the file cannot hold.
    fn check_count(&self, what: &str, count: u64, min_bytes: u64) -> Result<()> {
        let left = self.left();
        if count > left / min_bytes {
            return Err(self.bad(format!("{what}: {count} of at least {min_bytes} bytes each, but {left} are left")));
        }
        Ok(())
    }

    /// A string: its length, then as many bytes of UTF-8.
    fn text(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        let raw = self.take(len, what)?;
        std::str::from_utf8(raw).map_err(|e| self.bad(format!("{what}: not UTF-8: {e}")))
    }

    fn name(&mut self, what: &str) -> Result<&'a str> {
        let mut peek = Cursor { ..*self };
        let len = peek.u64(what)?;
        if len > MAX_NAME {
            return Err(self.bad(format!("{what}: expected at most {MAX_NAME} bytes, found {len}")));
        }
        self.text(what)
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32(key)?;
        Kind::ALL
            .get(number as usize)
            .copied()
            .ok_or_else(|| self.bad(format!("metadata {key}: type: expected 0 to 12, found {number}")))
    }

    /// Passes over one metadata value and says where it was.
    fn value(&mut self, key: &str) -> Result<Place> {
        let kind = self.kind(key)?;
        let mut place = Place { kind, of: kind, len: 1, at: self.at };
        if kind == Kind::Array {
            (place.of, place.len) = self.array_header(key)?;
            place.at = self.at;
        }
        self.skip(place.of, place.len, key, MAX_NESTING)?;
        Ok(place)
    }

    fn array_header(&mut self, key: &str) -> Result<(Kind, u64)> {
        let of = self.kind(key)?;
        let len = self.u64(key)?;
        self.check_count(&format!("metadata {key}: elements"), len, of.min_bytes())?;
        Ok((of, len))
    }

    fn skip(&mut self, kind: Kind, count: u64, key: &str, nesting: u32) -> Result<()> {
        match kind {
            Kind::Str => {
                for _ in 0..count {
                    let len = self.u64(key)?;
                    self.take(len, key)?;
                }
            }
            Kind::Array if nesting == 0 => {
                return Err(self.bad(format!("metadata {key}: arrays nested more than {MAX_NESTING} deep")));
            }
            Kind::Array => {
                for _ in 0..count {
                    let (of, len) = self.array_header(key)?;
                    self.skip(of, len, key, nesting - 1)?;
                }
            }
            // `count` was checked against the bytes left, so the product fits.
            plain => {
                self.take(count * plain.min_bytes(), key)?;
            }
        }
        Ok(())
    }

    fn integer(&mut self, kind: Kind, key: &str) -> Result<Option<i128>> {
        Ok(Some(match kind {
            Kind::U8 => self.u8(key)?.into(),
            Kind::I8 => self.i8(key)?.into(),
            Kind::U16 => self.u16(key)?.into(),
            Kind::I16 => self.i16(key)?.into(),
            Kind::U32 => self.u32(key)?.into(),
            Kind::I32 => self.i32(key)?.into(),
            Kind::U64 => self.u64(key)?.into(),
            Kind::I64 => self.i64(key)?.into(),
            _ => return Ok(None),
        }))
    }

    fn number(&mut self, kind: Kind, key: &str) -> Result<Option<f64>> {
        Ok(match kind {
            Kind::F32 => Some(self.f32(key)?.into()),
            Kind::F64 => Some(self.f64(key)?),
            _ => self.integer(kind, key)?.map(|x| x as f64),
        })
    }

    /// One line of the tensor directory: name, type and shape, offset in the data section.
    fn tensor(&mut self, alignment: u64) -> Result<(String, TensorInfo, u64)> {
        let name = self.name("tensor name")?.to_owned();
        let rank = self.u32(&name)?;
        if rank > 4 {
            return Err(self.bad(format!("tensor {name}: expected at most 4 dimensions, found {rank}")));
        }
        let mut dims = Vec::with_capacity(4);
        for _ in 0..rank {
            dims.push(self.u64(&name)?);
        }
        let dtype = self.dtype(&name)?;
        let offset = self.u64(&name)?;
        if offset % alignment != 0 {
            return Err(self.bad(format!("tensor {name}: offset {offset} is not a multiple of {alignment}")));
        }
        // The file stores the fastest dimension first.
        let shape = dims.iter().rev().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| self.bad(format!("tensor {name}: dimensions {dims:?} are too large")))?;
        Ok((name, TensorInfo { dtype, shape }, offset))
    }

    fn dtype(&mut self, name: &str) -> Result<DType> {
        let number = self.u32(name)?;
        Ok(match number {
            0 => DType::F32,
            1 => DType::F16,
            2 => DType::Q4_0,
            3 => DType::Q4_1,
            6 => DType::Q5_0,
            8 => DType::Q8_0,
            12 => DType::Q4K,
            13 => DType::Q5K,
            14 => DType::Q6K,
            30 => DType::BF16,
            _ => {
                let found = ggml_name(number).map_or_else(|| format!("number {number}"), str::to_owned);
                return Err(Error::Unsupported(format!(
                    "{}: tensor {name}: type {found}; readable are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K",
                    self.path.display()
                )));
            }
        })
    }

    /// Bytes of a tensor in the file.
    fn tensor_range(&self, name: &str, info: &TensorInfo, offset: u64, data_start: usize) -> Result<Range<usize>> {
        let TensorInfo { dtype, shape } = info;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = elements.and_then(|n| n.div_ceil(dtype.block_len()).checked_mul(dtype.block_bytes()));
        let size = size.ok_or_else(|| self.bad(format!("tensor {name}: shape {shape:?} has too many elements")))?;
        let columns = shape.last().copied().unwrap_or(1);
        if columns % dtype.block_len() != 0 {
            let block = dtype.block_len();
            return Err(self.bad(format!("tensor {name}: {columns} columns of {dtype} are not a multiple of {block}")));
        }
        let start = usize::try_from(offset).ok().and_then(|o| o.checked_add(data_start));
        let end = start.and_then(|s| s.checked_add(size)).filter(|&end| end <= self.bytes.len());
        match (start, end) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(self.bad(format!(
                "tensor {name}: {size} bytes at offset {offset} of the data (byte {data_start}), but the file has {}: cut short?",
                self.bytes.len()
            ))),
        }
    }
}

/// ggml's name of a tensor type that is not read here.
fn ggml_name(number: u32) -> Option<&'static str> {
    Some(match number {
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}
