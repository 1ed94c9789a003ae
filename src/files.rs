//! Writing files whole or not at all.

use crate::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::Path;

/// That a file can be written there, to be asked before long work whose result would be lost.
#[cfg(feature = "cli")]
pub fn check_place(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "expected the name of a file to write, found a directory"));
    }
    temporary(path).map(drop)
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

/// [`write`] for content that is made on the way.
pub fn write_with(path: &Path, content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let io = |source| Error::io(path, source);
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

    #[cfg(feature = "cli")]
    #[test]
    fn places_are_checked_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        super::check_place(&dir.path().join("out.json")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for wrong in [dir.path().to_path_buf(), dir.path().join("no/such")] {
            assert!(super::check_place(&wrong).is_err(), "{wrong:?}");
        }
    }
}
