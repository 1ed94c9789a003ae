//! NVRTC: one linked source to machine code for one architecture, and the copy of it kept on disk.
#![allow(unsafe_code, reason = "calls into NVRTC, which takes and fills raw pointers")]

use super::device::Library;
use crate::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

/// What NVRTC made of a source.
pub struct Compiled {
    /// Machine code for the architecture.
    pub cubin: Vec<u8>,
    /// The compiler's remarks; with `--ptxas-options=-v` among the options, registers and spills of each kernel.
    pub log: String,
}

/// Compiles a linked source (no `#include` in it) for an architecture like `sm_90a`.
///
/// # Errors
/// [`Error::Unavailable`] where libnvrtc is missing or does not know the architecture, [`Error::Device`] with the
/// compiler's words where the source is at fault.
pub fn compile(name: &str, source: &str, options: &[String]) -> Result<Compiled> {
    Library::Nvrtc.require()?;
    let nul = |_| Error::invalid(format!("{name}: a NUL byte in the source"));
    let (source, label) = (CString::new(source).map_err(nul)?, CString::new(name).map_err(nul)?);
    let program = result::create_program(&source, Some(&label))
        .map_err(|e| Error::Device(format!("{name}: nvrtcCreateProgram: {e}")))?;
    // SAFETY: `program` is live until it is destroyed below; the buffers are as long as NVRTC says.
    let compiled = unsafe {
        let outcome = result::compile_program(program, options);
        let log = result::get_program_log(program).map(|log| text(&log)).unwrap_or_default();
        let cubin = outcome.and_then(|()| {
            let mut bytes = 0;
            sys::nvrtcGetCUBINSize(program, &mut bytes).result()?;
            let mut cubin = vec![0u8; bytes];
            sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
            Ok(cubin)
        });
        let _ = result::destroy_program(program);
        cubin.map(|cubin| Compiled { cubin, log: log.clone() }).map_err(|e| (e, log))
    };
    compiled.map_err(|(e, log)| match e.0 {
        sys::nvrtcResult::NVRTC_ERROR_INVALID_OPTION if log.contains("architecture") => Error::Unavailable(format!(
            "CUDA: this libnvrtc is too old for the device ({}); {}",
            log.trim(),
            Library::Nvrtc.advice()
        )),
        _ => Error::Device(format!("{name}: NVRTC: {e}\n{log}")),
    })
}

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Version of the NVRTC in use, part of the cache key.
pub(super) fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two valid places; the caller made sure that the library is there.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// A folder of cubins, named by a hash of compiler version, options and source.
#[derive(Clone, Debug)]
pub(super) struct DiskCache(Option<PathBuf>);

impl DiskCache {
    /// In `folder`, or where the platform keeps caches; none where neither is known.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let platform = || {
            let base = variable("XDG_CACHE_HOME")
                .or_else(|| variable("LOCALAPPDATA"))
                .or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
            Some(base.join("minference").join("cuda"))
        };
        Self(folder.or_else(platform))
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join(format!("{}.cubin", fingerprint(key.as_bytes()))))
    }

    /// What was stored under the key; a damaged or missing file is `None`.
    pub(super) fn load(&self, key: &str) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(key)?).ok()?;
        // The last 32 characters are the content's own fingerprint: a torn file is not handed to the driver.
        let (cubin, check) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        (fingerprint(cubin).as_bytes() == check).then(|| cubin.to_vec())
    }

    /// Stores a cubin, and its fingerprint behind it.
    pub(super) fn store(&self, key: &str, cubin: &[u8]) {
        if let Some(path) = self.path(key) {
            crate::files::keep(&path, &[cubin, fingerprint(cubin).as_bytes()].concat());
        }
    }
}

/// 128-bit FNV-1a in hex: stable across versions of Rust, which `DefaultHasher` is not.
fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0x6c62272e07bb014262b821756295c58d_u128, |hash, &byte| {
        (hash ^ byte as u128).wrapping_mul(0x0000000001000000000000000000013B)
    });
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_returns_what_was_stored_and_nothing_torn() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(Some(folder.path().to_path_buf()));
        assert_eq!(cache.load("key"), None);
        cache.store("key", b"machine code");
        assert_eq!(cache.load("key").as_deref(), Some(&b"machine code"[..]));
        assert_eq!(cache.load("another key"), None);
        let path = cache.path("key").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(cache.load("key"), None);
    }
}
