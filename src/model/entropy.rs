//! Randomness, passed in: production asks the operating system, a test may replay what it likes.
//!
//! Coupon codes are money, so there is no other generator: no seed, no state that could leak or repeat.

use std::cell::RefCell;

use rand::TryRng;
use rand::rngs::SysRng;
use uuid::Uuid;

/// A source of unpredictable bytes.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` from the source.
    ///
    /// # Errors
    /// When the source cannot deliver; nothing may be issued then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError>;

    /// A name that nobody has used and nobody can guess.
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

/// The operating system's CSPRNG, asked for some bytes at a time: a system call for each code would cost more than the code.
/// A byte is handed out once, and wiped.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

/// Bytes from the operating system that are not handed out yet: the first `left`.
struct Reserve {
    bytes: [u8; 1024],
    left: usize,
}

thread_local! {
    static RESERVE: RefCell<Reserve> = const { RefCell::new(Reserve { bytes: [0; 1024], left: 0 }) };
}

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        RESERVE.with_borrow_mut(|reserve| reserve.fill(bytes))
    }
}

impl Reserve {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for part in bytes.chunks_mut(self.bytes.len()) {
            if self.left < part.len() {
                self.left = 0;
                SysRng.try_fill_bytes(&mut self.bytes).map_err(|_| EntropyError)?;
                self.left = self.bytes.len();
            }
            let rest = self.left - part.len();
            let handed_out = &mut self.bytes[rest..self.left];
            part.copy_from_slice(handed_out);
            handed_out.fill(0);
            self.left = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_byte_is_handed_out_twice() {
        let mut reserve = Reserve { bytes: [0; 1024], left: 0 };
        let mut seen = HashSet::new();
        for length in [1, 24, 1000, 1023, 1024, 1025, 5000] {
            let mut bytes = vec![0; length];
            reserve.fill(&mut bytes).unwrap();
            assert!(reserve.bytes[reserve.left..].iter().all(|byte| *byte == 0), "what is handed out is wiped");
            for window in bytes.windows(16).step_by(16) {
                assert!(seen.insert(window.to_vec()), "sixteen bytes came again");
                assert_ne!(window, [0; 16]);
            }
        }
    }
}
