//! A secret as a file, a variable of the environment or standard input holds it: one line of UTF-8.
//! Whoever needs one reads it; here the text is checked.

use secrecy::SecretString;

use super::{TextError, text_in};

/// Why a text is no secret. No message repeats any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SecretError {
    #[error("must not be empty")]
    Empty,
    #[error("is more than one line: a secret is one line, and nothing else")]
    Lines,
    #[error(transparent)]
    NoText(#[from] TextError),
    #[error("must not contain the character U+0000")]
    Nul,
}

/// The secret that a file holds: without the byte order mark that editors put before it, and without the line's end.
///
/// # Errors
/// When there is none, or anything besides.
pub fn secret_in(bytes: Vec<u8>) -> Result<SecretString, SecretError> {
    let text = text_in(bytes)?;
    secret_line(text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end_matches(['\r', '\n']))
}

/// The secret that a text is.
///
/// # Errors
/// When it is empty, more than one line, or holds the character U+0000.
pub fn secret_line(text: &str) -> Result<SecretString, SecretError> {
    if text.is_empty() {
        return Err(SecretError::Empty);
    }
    if text.contains('\0') {
        return Err(SecretError::Nul);
    }
    if text.contains(['\r', '\n']) {
        return Err(SecretError::Lines);
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_file_holds_one_line() {
        for (bytes, expected) in [
            (&b"hunter2"[..], Ok("hunter2")),
            (b"hunter2\n", Ok("hunter2")),
            (b"hunter2 \r\n", Ok("hunter2 ")),
            (b"\xef\xbb\xbfhunter2\r\n\r\n", Ok("hunter2")),
            (b"\xef\xbb\xbf\n", Err(SecretError::Empty)),
            (b"", Err(SecretError::Empty)),
            (b"hunter2\nhunter3", Err(SecretError::Lines)),
            (b"hunter2\r# the till's\r", Err(SecretError::Lines)),
            (b"\nhunter2\n", Err(SecretError::Lines)),
            (b"\xff\xfeh\0\n\0", Err(TextError::Utf16.into())),
            (b"\xfe\xff\0h", Err(TextError::Utf16.into())),
            (b"h\0u\0", Err(SecretError::Nul)),
            (b"h\xe4rter", Err(TextError::NotUtf8.into())),
        ] {
            let read = secret_in(bytes.to_vec());
            assert_eq!(read.as_ref().map(ExposeSecret::expose_secret).map_err(|error| *error), expected, "{bytes:?}");
        }
    }
}
