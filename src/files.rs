//! Reading files that end, and writing files whole or not at all.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Most bytes of a file that is read whole: more text than any model has positions for, and less than what a device
/// without an end (`/dev/zero`) would fill the memory with.
pub const MOST: u64 = 1 << 30;

/// The bytes of a file or of a pipe.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_from(path, File::open(path).map_err(|e| Error::io(path, e))?, MOST)
}

/// [`read`]; `None` where there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// All that comes from `source`, called `path` in errors, and at most so many bytes.
pub fn read_from(path: &Path, source: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(most + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    match bytes.len() as u64 <= most {
        true => Ok(bytes),
        false => Err(Error::file(path, format!("expected at most {most} bytes, found more"))),
    }
}

/// These bytes of a file as text.
pub fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(path, format!("expected UTF-8 text, found something else at byte {at}"))
    })
}

/// A file to be read in parts, which a pipe or a device cannot be: to open a pipe would wait for its writer.
pub fn open(path: &Path) -> Result<File> {
    let io = |e| Error::io(path, e);
    let file_type = std::fs::metadata(path).map_err(io)?.file_type();
    if !file_type.is_file() {
        let found = if file_type.is_dir() { "a directory" } else { "a pipe or a device" };
        return Err(Error::file(path, format!("expected a file, found {found}")));
    }
    File::open(path).map_err(io)
}

/// That a file can be written there, to be asked before long work whose result would be lost.
#[cfg(feature = "cli")]
pub fn check_place(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "expected the name of a file to write, found a directory"));
    }
    match is_special(path) {
        true => Ok(()),
        false => temporary(&target(path)).map(drop),
    }
}

/// Whether a pipe or a device is there, which is written to and not replaced.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Where a link leads, which stays one; any other path itself.
fn target(path: &Path) -> PathBuf {
    match path.is_symlink() {
        true => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    }
}

/// A new file in the directory of `path`.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if !dir.is_dir() {
        return Err(Error::file(path, format!("to be written, but there is no directory {}", dir.display())));
    }
    // The crate's own message names the temporary file, which means nothing to a user.
    let io = |e: std::io::Error| Error::io(path, std::io::Error::from(e.kind()));
    tempfile::Builder::new().prefix(".minference-").tempfile_in(dir).map_err(io)
}

/// Writes a temporary file in the same directory and renames it, so that no reader and no Ctrl-C ever sees half of it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// [`write`] into a cache, whose directory is made where it is missing. What cannot be kept is made again: no error.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn keep(path: &Path, bytes: &[u8]) {
    if path.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok()) {
        let _ = write(path, bytes);
    }
}

/// [`write`] for content that is made on the way.
pub fn write_with(path: &Path, content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let io = |source| Error::io(path, source);
    if is_special(path) {
        let mut file = File::options().write(true).open(path).map_err(io)?;
        return content(&mut file).map_err(io);
    }
    let path = &target(path);
    let file = temporary(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
    content(&mut writer).and_then(|()| writer.flush()).map_err(io)?;
    drop(writer);
    // A temporary file is private to its owner; what replaces it should be as any new file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_or(0o644, |m| m.permissions().mode());
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).map_err(io)?;
    }
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_write_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        super::write(&path, b"one").unwrap();
        super::write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = super::write(&dir.path().join("no/such/dir"), b"").unwrap_err();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        super::write(&link, b"two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        // Root could replace it.
        super::write("/dev/null".as_ref(), b"three").unwrap();
        assert!(super::is_special("/dev/null".as_ref()));
    }

    #[cfg(unix)]
    #[test]
    fn what_does_not_end_is_refused() {
        let error = super::read_from("zero".as_ref(), std::io::repeat(0), 100).unwrap_err().to_string();
        assert_eq!(error, "zero: expected at most 100 bytes, found more");
        assert_eq!(super::read_from("some".as_ref(), &[1, 2][..], 2).unwrap(), [1, 2]);
        let error = super::open("/dev/null".as_ref()).unwrap_err().to_string();
        assert_eq!(error, "/dev/null: expected a file, found a pipe or a device");
        assert!(super::read_if_there("/no/such/file".as_ref()).unwrap().is_none());
    }

    #[cfg(feature = "cli")]
    #[test]
    fn places_are_checked_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        super::check_place(&dir.path().join("out.json")).unwrap();
        #[cfg(unix)]
        super::check_place("/dev/null".as_ref()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for wrong in [dir.path().to_path_buf(), dir.path().join("no/such")] {
            assert!(super::check_place(&wrong).is_err(), "{wrong:?}");
        }
    }
}
