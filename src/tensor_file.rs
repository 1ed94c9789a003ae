//! Files of tensors (safetensors) that operations take and make: inputs, indices, results. Weights have their own reader.

use crate::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The longest header that is read; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor to write.
pub(crate) struct TensorOut<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

/// Writes a safetensors file, whole or not at all. Tensors lie in the order given, so put those of large elements first.
pub(crate) fn write_tensors(path: &Path, notes: &[(&str, String)], tensors: &[TensorOut]) -> Result<()> {
    let mut offset = 0;
    let infos = tensors.iter().map(|t| {
        let data_offsets = (offset, offset + t.bytes.len());
        offset = data_offsets.1;
        (t.name.to_owned(), TensorInfo { dtype: t.dtype, shape: t.shape.clone(), data_offsets })
    });
    let notes: HashMap<String, String> = notes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    let header = Metadata::new(Some(notes), infos.collect())
        .map_err(|e| Error::file(path, e.to_string()))
        .and_then(|m| serde_json::to_string(&m).map_err(|e| Error::file(path, e.to_string())))?;
    crate::files::write_with(path, |file| {
        let padded = header.len().next_multiple_of(8);
        file.write_all(&(padded as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        file.write_all(&b"        "[..padded - header.len()])?;
        tensors.iter().try_for_each(|t| file.write_all(t.bytes))
    })
}

/// A safetensors file whose tensors are read when asked for: `attend` inputs reach gigabytes.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Reads and checks the header: lengths, offsets and shapes agree with each other and with the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = crate::files::open(path)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        if file_bytes < 8 {
            return Err(Error::file(path, format!("not safetensors: expected at least 8 bytes, found {file_bytes}")));
        }
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES.min(file_bytes - 8) {
            let what = format!("not safetensors: header of {length} bytes in a file of {file_bytes}");
            return Err(Error::file(path, what));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| Error::file(path, format!("header: {e}")))?;
        let (data_start, data) = (8 + length, header.data_len() as u64);
        if data_start + data != file_bytes {
            let what = format!("expected {} bytes by its header, found {file_bytes}", data_start + data);
            return Err(Error::file(path, what));
        }
        Ok(Self { path: path.to_owned(), file, header, data_start })
    }

    /// Element type and shape of a tensor.
    pub(crate) fn info(&self, name: &str) -> Result<(Dtype, &[usize])> {
        let info = self.header.info(name).ok_or_else(|| {
            let mut found = self.header.offset_keys();
            found.sort();
            found.truncate(16);
            Error::file(&self.path, format!("tensor {name}: missing; the file has {}", found.join(", ")))
        })?;
        Ok((info.dtype, &info.shape))
    }

    /// A note of the file's metadata.
    pub(crate) fn note(&self, name: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(name).map(String::as_str)
    }

    /// An error about one tensor of this file.
    pub(crate) fn error(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("tensor {name}: {what}"))
    }

    /// The bytes of a tensor, little-endian, row-major.
    pub(crate) fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        self.info(name)?;
        let (start, end) = self.header.info(name).map_or((0, 0), |info| info.data_offsets);
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| Error::io(&self.path, e))?;
        Ok(bytes)
    }

    /// An i32 tensor with its shape.
    pub(crate) fn i32s(&mut self, name: &str) -> Result<(Vec<usize>, Vec<i32>)> {
        self.integers(name, Dtype::I32)
    }

    /// An i64 tensor with its shape.
    pub(crate) fn i64s(&mut self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        self.integers(name, Dtype::I64)
    }

    fn integers<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &mut self,
        name: &str,
        want: Dtype,
    ) -> Result<(Vec<usize>, Vec<T>)> {
        let (dtype, shape) = self.info(name)?;
        if dtype != want {
            return Err(self.error(name, format!("expected {want}, found {dtype}")));
        }
        let shape = shape.to_vec();
        Ok((shape, bytemuck::pod_collect_to_vec(&self.bytes(name)?)))
    }
}
