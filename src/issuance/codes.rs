//! Generates coupon codes from the operating system's CSPRNG, uniform over their alphabet.
//!
//! The database ensures uniqueness: it refuses a code that exists, and the service generates another.

use crate::model::{ClientHandling, CodeShape, Entropy, EntropyError};

/// The number of different codes of this shape, at most 31^20.
#[must_use]
pub fn space_size(shape: &CodeShape) -> u128 {
    (shape.alphabet().len() as u128).saturating_pow(u32::from(shape.random_code_length))
}

/// With this many codes a collision is negligible: with a hundred million coupons, one code in a million collides.
const COLLISION_FREE_SPACE: u128 = 100_000_000_000_000;

/// Whether collisions of new codes with existing ones are likely enough to handle them cheaply.
pub(super) fn may_collide(handling: &ClientHandling) -> bool {
    match handling {
        ClientHandling::Generated(shape) => space_size(shape) < COLLISION_FREE_SPACE,
        // An upload rejects codes that exist, so only a change by hand can make an uploaded code collide.
        ClientHandling::Generic(_) | ClientHandling::Pool => false,
    }
}

/// Generates a code of this shape.
///
/// # Errors
/// When the source of randomness fails.
pub(super) fn generate(shape: &CodeShape, entropy: &dyn Entropy) -> Result<String, EntropyError> {
    let alphabet = shape.alphabet().as_bytes();
    let length = usize::from(shape.random_code_length);
    // Bytes beyond the last whole multiple of the alphabet's length are rejected, since they would favour its first letters.
    let limit = 256 - 256 % alphabet.len();

    let mut code = String::with_capacity(shape.coupon_prefix.len() + length + shape.coupon_suffix.len());
    code.push_str(&shape.coupon_prefix);
    let mut generated = 0;
    while generated < length {
        let mut bytes = [0_u8; 24];
        entropy.fill(&mut bytes)?;
        for byte in bytes.into_iter().map(usize::from).filter(|byte| *byte < limit).take(length - generated) {
            code.push(char::from(alphabet[byte % alphabet.len()]));
            generated += 1;
        }
    }
    code.push_str(&shape.coupon_suffix);
    Ok(code)
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::model::OsEntropy;

    fn shape(alpha_numeric: bool, random_code_length: u8) -> CodeShape {
        CodeShape { alpha_numeric, random_code_length, coupon_prefix: "AB".to_owned(), coupon_suffix: "Z".to_owned() }
    }

    /// Repeats the given bytes.
    struct Replay(Vec<u8>);

    impl Entropy for Replay {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
            for (byte, given) in bytes.iter_mut().zip(self.0.iter().cycle()) {
                *byte = *given;
            }
            Ok(())
        }
    }

    #[test]
    fn prefix_random_part_and_suffix() {
        assert_eq!(generate(&shape(false, 5), &Replay(vec![0, 1, 2, 3, 4])).unwrap(), "AB01234Z");
        assert_eq!(generate(&shape(true, 20), &OsEntropy).unwrap().len(), 23);
    }

    #[test]
    fn bytes_that_would_favour_a_letter_are_rejected() {
        // 248 = 8 x 31 and 250 = 25 x 10 are the first rejected bytes.
        assert_eq!(generate(&shape(true, 5), &Replay(vec![248, 255, 0, 247])).unwrap(), "AB2Z2Z2Z");
        assert_eq!(generate(&shape(false, 5), &Replay(vec![250, 255, 0, 249])).unwrap(), "AB09090Z");
    }

    #[test]
    fn the_size_of_the_space_does_not_overflow() {
        assert_eq!(space_size(&shape(false, 5)), 100_000);
        assert_eq!(space_size(&shape(true, 20)), 31_u128.pow(20));
    }

    /// The chi-square statistic of these counts against equal frequencies.
    fn chi_square(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
    }

    /// In a million codes, each letter is equally frequent at each position, independently of the same position in the code before and of
    /// the neighbouring letter. By chance the test fails about once in a million runs; a bias of 1 % is far beyond the bounds.
    #[test]
    fn codes_are_uniform_and_independent() {
        const CODES: usize = 1_000_000;
        const LENGTH: usize = 12;
        let plain = CodeShape { coupon_prefix: String::new(), coupon_suffix: String::new(), ..shape(true, 12) };
        let mut index = [0; 256];
        for (position, letter) in plain.alphabet().bytes().enumerate() {
            index[usize::from(letter)] = position;
        }
        let letters = plain.alphabet().len();
        let mut by_position = vec![vec![0_u32; letters]; LENGTH];
        let mut successive = vec![0_u32; letters * letters];
        let mut adjacent = vec![0_u32; letters * letters];
        let mut all = std::collections::HashSet::with_capacity(CODES);
        let mut previous: Option<Vec<usize>> = None;
        for _ in 0..CODES {
            let code = generate(&plain, &OsEntropy).unwrap();
            let letter_indices: Vec<usize> = code.bytes().map(|letter| index[usize::from(letter)]).collect();
            for (position, letter) in letter_indices.iter().enumerate() {
                by_position[position][*letter] += 1;
                if let Some(previous) = &previous {
                    successive[previous[position] * letters + letter] += 1;
                }
            }
            for pair in letter_indices.windows(2) {
                adjacent[pair[0] * letters + pair[1]] += 1;
            }
            previous = Some(letter_indices);
            all.insert(code);
        }
        assert_eq!(all.len(), CODES, "a code occurred twice, which by chance happens once in a million runs");
        for counts in &by_position {
            // 30 degrees of freedom.
            assert!(chi_square(counts) < 95.0, "{counts:?}");
        }
        // 960 degrees of freedom.
        assert!(chi_square(&successive) < 1230.0, "{}", chi_square(&successive));
        assert!(chi_square(&adjacent) < 1230.0, "{}", chi_square(&adjacent));
    }
}
