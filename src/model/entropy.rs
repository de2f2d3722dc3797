//! All code gets randomness from an [`Entropy`], so that tests can replay bytes.
//!
//! Coupon codes are worth money, so production uses only the operating system's generator: there is no seed or state that could leak or
//! repeat.

use std::cell::RefCell;

use rand::TryRng;
use rand::rngs::SysRng;
use uuid::Uuid;

/// A source of unpredictable bytes.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` from the source.
    ///
    /// # Errors
    /// When the source fails. Nothing may be issued then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError>;

    /// A random UUID.
    ///
    /// # Errors
    /// As [`Entropy::fill`].
    fn uuid(&self) -> Result<Uuid, EntropyError> {
        let mut bytes = [0; 16];
        self.fill(&mut bytes)?;
        Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

/// The source of randomness failed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct EntropyError;

/// The operating system's CSPRNG. It is read in blocks, because a system call for each code would cost more than the code itself.
/// Each byte is used once, and then wiped.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

/// A block of bytes from the operating system. The first `remaining` bytes are unused.
struct Block {
    bytes: [u8; 1024],
    remaining: usize,
}

thread_local! {
    static BLOCK: RefCell<Block> = const { RefCell::new(Block { bytes: [0; 1024], remaining: 0 }) };
}

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        BLOCK.with_borrow_mut(|block| block.fill(bytes))
    }
}

impl Block {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for part in bytes.chunks_mut(self.bytes.len()) {
            if self.remaining < part.len() {
                self.remaining = 0;
                SysRng.try_fill_bytes(&mut self.bytes).map_err(|_| EntropyError)?;
                self.remaining = self.bytes.len();
            }
            let unused = self.remaining - part.len();
            let used = &mut self.bytes[unused..self.remaining];
            part.copy_from_slice(used);
            used.fill(0);
            self.remaining = unused;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_byte_is_used_twice() {
        let mut block = Block { bytes: [0; 1024], remaining: 0 };
        let mut seen = HashSet::new();
        for length in [1, 24, 1000, 1023, 1024, 1025, 5000] {
            let mut bytes = vec![0; length];
            block.fill(&mut bytes).unwrap();
            assert!(block.bytes[block.remaining..].iter().all(|byte| *byte == 0), "used bytes are wiped");
            for window in bytes.windows(16).step_by(16) {
                assert!(seen.insert(window.to_vec()), "sixteen bytes were repeated");
                assert_ne!(window, [0; 16]);
            }
        }
    }
}
