//! Coupon codes: as unpredictable as the operating system's CSPRNG, uniform over their alphabet.
//!
//! Uniqueness is not decided here: the database refuses a code that exists, and another is drawn.

use crate::model::{CodeShape, Entropy, EntropyError};

/// Letters and digits without those that are taken for one another (0 O 1 I L).
pub const ALPHANUMERIC: &[u8] = b"23456789ABCDEFGHJKMNPQRSTUVWXYZ";
/// The digits; a code keeps its leading zeros.
pub const DIGITS: &[u8] = b"0123456789";

/// The alphabet of a shape's random part.
#[must_use]
pub const fn alphabet(shape: &CodeShape) -> &'static [u8] {
    if shape.alpha_numeric { ALPHANUMERIC } else { DIGITS }
}

/// How many different codes a shape has. At most 31^20, which fits.
#[must_use]
pub fn space(shape: &CodeShape) -> u128 {
    (alphabet(shape).len() as u128).saturating_pow(u32::from(shape.random_code_length))
}

/// Draws a code of this shape.
///
/// # Errors
/// When there is no randomness to be had.
pub fn draw(shape: &CodeShape, entropy: &dyn Entropy) -> Result<String, EntropyError> {
    let alphabet = alphabet(shape);
    let length = usize::from(shape.random_code_length);
    // A byte beyond the last whole multiple of the alphabet is thrown away: a remainder would favour its first letters.
    let fair = 256 - 256 % alphabet.len();

    let mut code = String::with_capacity(shape.coupon_prefix.len() + length + shape.coupon_suffix.len());
    code.push_str(&shape.coupon_prefix);
    let mut drawn = 0;
    while drawn < length {
        let mut bytes = [0_u8; 24];
        entropy.fill(&mut bytes)?;
        for byte in bytes.into_iter().map(usize::from).filter(|byte| *byte < fair).take(length - drawn) {
            code.push(char::from(alphabet[byte % alphabet.len()]));
            drawn += 1;
        }
    }
    code.push_str(&shape.coupon_suffix);
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OsEntropy;

    fn shape(alpha_numeric: bool, random_code_length: u8) -> CodeShape {
        CodeShape { alpha_numeric, random_code_length, coupon_prefix: "AB".to_owned(), coupon_suffix: "Z".to_owned() }
    }

    /// Gives the bytes it was made with, over and over.
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
        assert_eq!(draw(&shape(false, 5), &Replay(vec![0, 1, 2, 3, 4])).unwrap(), "AB01234Z");
        assert_eq!(draw(&shape(true, 20), &OsEntropy).unwrap().len(), 23);
    }

    #[test]
    fn bytes_that_would_favour_a_letter_are_thrown_away() {
        // 248 = 8 x 31 and 250 = 25 x 10 are the first unfair bytes.
        assert_eq!(draw(&shape(true, 5), &Replay(vec![248, 255, 0, 247])).unwrap(), "AB2Z2Z2Z");
        assert_eq!(draw(&shape(false, 5), &Replay(vec![250, 255, 0, 249])).unwrap(), "AB09090Z");
    }

    #[test]
    fn the_space_is_counted_without_overflow() {
        assert_eq!(space(&shape(false, 5)), 100_000);
        assert_eq!(space(&shape(true, 20)), 31_u128.pow(20));
    }

    /// Uniform over the alphabet: chi-square over a million letters, far below what a bias of 1 % would give.
    #[test]
    fn letters_are_equally_frequent() {
        let mut seen = [0_u32; 256];
        let plain = CodeShape { coupon_prefix: String::new(), coupon_suffix: String::new(), ..shape(true, 20) };
        for _ in 0..50_000 {
            draw(&plain, &OsEntropy).unwrap().bytes().for_each(|letter| seen[usize::from(letter)] += 1);
        }
        let expected = 1_000_000.0 / 31.0;
        let chi_square: f64 =
            ALPHANUMERIC.iter().map(|l| (f64::from(seen[usize::from(*l)]) - expected).powi(2) / expected).sum();
        assert_eq!(ALPHANUMERIC.iter().map(|l| seen[usize::from(*l)]).sum::<u32>(), 1_000_000);
        // 30 degrees of freedom: above 84 once in ten million runs.
        assert!(chi_square < 84.0, "chi-square {chi_square}");
    }
}
