//! The alphabet of uploaded codes, generic codes, and the prefix and suffix of generated codes.
//!
//! People read codes aloud, type them and print them. So the alphabet excludes characters that spreadsheets and address books add, such
//! as quotes, separators and invisible characters.

use std::fmt;

/// The maximum length of a code, in characters.
pub const MAX_CODE_LENGTH: usize = 255;
/// The description of the alphabet in error messages.
pub const CODE_ALPHABET: &str = "the letters A to Z and a to z, digits and - _ . / +";

/// Why a text is not a valid code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CodeError {
    #[error("the code is missing")]
    Missing,
    #[error("the code is longer than {MAX_CODE_LENGTH} characters")]
    TooLong,
    #[error("the code has a space or a control character in it")]
    Blank,
    #[error("the code has {} in it; allowed are {CODE_ALPHABET}", Character(*.0))]
    Character(char),
}

/// Checks that a text is a valid code.
///
/// # Errors
/// The first violation.
pub fn check_code(text: &str) -> Result<(), CodeError> {
    if text.is_empty() {
        return Err(CodeError::Missing);
    }
    match text.chars().find(|c| !may_be_in_code(*c)) {
        Some(c) if c == ' ' || c.is_ascii_control() => Err(CodeError::Blank),
        Some(c) => Err(CodeError::Character(c)),
        None if text.len() > MAX_CODE_LENGTH => Err(CodeError::TooLong),
        None => Ok(()),
    }
}

/// The canonical form for comparisons: codes are case-insensitive.
#[must_use]
pub fn canonical(code: &str) -> String {
    code.to_ascii_uppercase()
}

/// Whether a code may contain this character.
#[must_use]
pub const fn may_be_in_code(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+')
}

/// Whether a character is invisible or looks like a plain space, so that different texts look the same. The replacement character counts
/// as invisible, since the original character is lost.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    let is_ignorable = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffd}' | '\u{e0000}'..='\u{e0fff}');
    c.is_control() || is_ignorable || (c.is_whitespace() && c != ' ')
}

/// A character in an error message: itself if it is visible, with its code point if it is not ASCII, and with its name if it is common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Character(pub char);

impl fmt::Display for Character {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (c, number) = (self.0, u32::from(self.0));
        let name = match c {
            '\t' => "tab",
            '\u{a0}' => "no-break space",
            '\u{ad}' => "soft hyphen",
            '\u{200b}' => "zero width space",
            '\u{200c}' => "zero width non-joiner",
            '\u{200d}' => "zero width joiner",
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                "a mark of writing direction"
            }
            '\u{2060}' => "word joiner",
            '\u{feff}' => "byte order mark",
            '\u{fffd}' => "replacement character: the text was converted wrongly",
            _ if is_invisible(c) => return write!(formatter, "U+{number:04X}"),
            _ if c.is_ascii() => return write!(formatter, "the character {c}"),
            _ => return write!(formatter, "the character {c} (U+{number:04X})"),
        };
        write!(formatter, "U+{number:04X} ({name})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_only_letters_digits_and_a_few_signs() {
        for code in ["A", "gift-9_z.0/+", &"x".repeat(255)] {
            assert_eq!(check_code(code), Ok(()), "{code}");
        }
        for (text, error) in [
            ("", CodeError::Missing),
            (&"x".repeat(256), CodeError::TooLong),
            ("A 1", CodeError::Blank),
            ("A1\n", CodeError::Blank),
            ("A;1", CodeError::Character(';')),
            ("\u{200b}", CodeError::Character('\u{200b}')),
            ("\u{c4}", CodeError::Character('\u{c4}')),
        ] {
            assert_eq!(check_code(text), Err(error), "{text}");
        }
    }

    #[test]
    fn codes_are_case_insensitive() {
        assert_eq!(canonical("gift-9_z.0/+"), "GIFT-9_Z.0/+");
        assert_eq!(canonical("GIFT-E1"), canonical("gift-e1"));
    }

    #[test]
    fn error_messages_identify_the_character() {
        for (c, message) in [
            (';', "the character ;"),
            ('\u{c4}', "the character \u{c4} (U+00C4)"),
            ('\u{200b}', "U+200B (zero width space)"),
            ('\u{2003}', "U+2003"),
            ('\u{7}', "U+0007"),
        ] {
            assert_eq!(Character(c).to_string(), message);
        }
    }
}
