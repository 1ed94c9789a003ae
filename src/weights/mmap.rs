//! The bytes of a file without copying them: the one place where a file is mapped into memory.

#![allow(unsafe_code)]

use crate::{Error, Result};
use std::path::Path;

/// Bytes of a weight file, wherever they live.
pub enum Bytes {
    /// Mapped from a file: pages come in when they are read and may be dropped again by the system.
    Mapped(memmap2::Mmap),
    /// Held in memory.
    Owned(Vec<u8>),
    /// Part of the program (`include_bytes!`).
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps a file for reading. An empty file gives no bytes; a file that cannot be mapped is [`Error::Io`], and what is no file
    /// [`Error::File`].
    ///
    /// The file must not be changed while it is mapped: a writer that truncates it makes reads fail with a signal, as
    /// with every program that maps its weights. Downloaders write to another name and rename, which is safe.
    pub fn map(path: &Path) -> Result<Self> {
        let file = crate::files::open(path)?;
        if file.metadata().map_err(|e| Error::io(path, e))?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is read-only and private to this value. Its bytes are only ever read as plain numbers
        // after bounds checks, so a concurrent writer can give wrong values but no invalid Rust values; that the file
        // is not truncated meanwhile is the documented condition above.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self::Mapped(map))
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self::Static(bytes)
    }
}
