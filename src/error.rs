//! The crate's one error type.

use std::path::PathBuf;
use std::process::ExitCode;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the reader should do about it.
///
/// [`Error::exit_code`] separates bad input (2: the caller can mend it) from a failure (1: the machine could not).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation was given tensors that do not fit together: check the shapes it names.
    #[error("{op}: {what}: expected {expected}, got {got}")]
    Shape {
        /// The operation, by its stem.
        op: &'static str,
        /// The argument at fault.
        what: &'static str,
        /// What the operation needs.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// A value outside what is allowed: check the argument it names.
    #[error("{0}")]
    Invalid(String),
    /// A file is damaged or does not say what it should: check the field it names.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Which field or tensor, what was expected and what was found.
        what: String,
    },
    /// The operating system refused a file: check that it exists and can be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A model, format or feature that this build does not support; never answered wrongly instead.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The device, its driver or a library is missing here: the text says which and where to get it.
    #[error("{0}")]
    Unavailable(String),
    /// Not enough memory: the text gives what was asked, what is free, and what would fit.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device failed or was lost while working.
    #[error("device: {0}")]
    Device(String),
    /// Stopped by the user.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A file whose content is wrong.
    pub fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into() }
    }

    /// A file that the system refused.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A value outside what is allowed.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }

    /// The status a program should exit with: 2 for input the caller can mend, 130 where the user stopped it, 1 for
    /// everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Shape { .. } | Self::Invalid(_) | Self::File { .. } | Self::Io { .. } | Self::Unsupported(_) => 2,
            Self::OutOfMemory(_) => 2,
            Self::Unavailable(_) | Self::Device(_) => 1,
            Self::Interrupted => 130,
        }
    }

    /// Says it on one line of stderr, and gives the status to exit with: how a program's `main` ends.
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.to_string().replace('\n', " "));
        ExitCode::from(self.exit_code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_who_can_help() {
        assert_eq!(Error::invalid("x").exit_code(), 2);
        assert_eq!(Error::io("x", std::io::ErrorKind::NotFound.into()).exit_code(), 2);
        assert_eq!(Error::Device("x".into()).exit_code(), 1);
        assert_eq!(Error::Interrupted.exit_code(), 130);
    }
}
