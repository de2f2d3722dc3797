//! Coupon codes: as unpredictable as the operating system's CSPRNG, uniform over their alphabet.
//!
//! Uniqueness is not decided here: the database refuses a code that exists, and another is drawn.

use crate::model::{ClientHandling, CodeShape, Entropy, EntropyError};

/// How many different codes a shape has. At most 31^20, which fits.
#[must_use]
pub fn space(shape: &CodeShape) -> u128 {
    (shape.alphabet().len() as u128).saturating_pow(u32::from(shape.random_code_length))
}

/// In a space of so many codes a draw is as good as never one that exists: with a hundred million coupons, once in a million.
const VAST: u128 = 100_000_000_000_000;

/// Whether it is to be expected that a new coupon's code exists already.
#[must_use]
pub fn may_collide(handling: &ClientHandling) -> bool {
    match handling {
        ClientHandling::Generated(shape) => space(shape) < VAST,
        ClientHandling::Generic(_) => false,
        ClientHandling::Pool => true,
    }
}

/// Draws a code of this shape.
///
/// # Errors
/// When there is no randomness to be had.
pub fn draw(shape: &CodeShape, entropy: &dyn Entropy) -> Result<String, EntropyError> {
    let alphabet = shape.alphabet().as_bytes();
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
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
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

    /// How far counts are from all being equal.
    fn chi_square(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
    }

    /// A million codes: each letter equally frequent at each place, and, whatever stands there in one code, in the next.
    /// All bounds together are passed by chance about once in a million runs; a bias of 1 % is far beyond them.
    #[test]
    fn codes_are_uniform_and_tell_nothing_of_the_next() {
        const CODES: usize = 1_000_000;
        const LENGTH: usize = 12;
        let plain = CodeShape { coupon_prefix: String::new(), coupon_suffix: String::new(), ..shape(true, 12) };
        let mut index = [0; 256];
        for (at, letter) in plain.alphabet().bytes().enumerate() {
            index[usize::from(letter)] = at;
        }
        let letters = plain.alphabet().len();
        let mut at_place = vec![vec![0_u32; letters]; LENGTH];
        let mut neighbours = vec![0_u32; letters * letters];
        let mut adjacent = vec![0_u32; letters * letters];
        let mut all = std::collections::HashSet::with_capacity(CODES);
        let mut last: Option<Vec<usize>> = None;
        for _ in 0..CODES {
            let code = draw(&plain, &OsEntropy).unwrap();
            let drawn: Vec<usize> = code.bytes().map(|letter| index[usize::from(letter)]).collect();
            for (place, letter) in drawn.iter().enumerate() {
                at_place[place][*letter] += 1;
                if let Some(last) = &last {
                    neighbours[last[place] * letters + letter] += 1;
                }
            }
            for pair in drawn.windows(2) {
                adjacent[pair[0] * letters + pair[1]] += 1;
            }
            last = Some(drawn);
            all.insert(code);
        }
        assert_eq!(all.len(), CODES, "a code came twice: of 31^12, by chance once in a million runs");
        for place in &at_place {
            // 30 degrees of freedom.
            assert!(chi_square(place) < 95.0, "{place:?}");
        }
        // 960 degrees of freedom.
        assert!(chi_square(&neighbours) < 1230.0, "{}", chi_square(&neighbours));
        assert!(chi_square(&adjacent) < 1230.0, "{}", chi_square(&adjacent));
    }
}
