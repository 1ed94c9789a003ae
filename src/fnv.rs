//! FNV-1a: a fingerprint, not a defence.

/// A fingerprint in the making.
#[derive(Clone, Copy)]
pub(crate) struct Fnv(u64);

impl Fnv {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes.
    pub fn add(self, bytes: &[u8]) -> Self {
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(bytes.iter().fold(self.0, step))
    }

    /// Of all that was added.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// Of some bytes.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    Fnv::new().add(bytes).finish()
}

#[cfg(test)]
mod tests {
    #[test]
    fn published_values_come_out() {
        assert_eq!(super::fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(super::fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
