//! Validates secrets from files, environment variables and standard input. A secret is one line of UTF-8.

use secrecy::SecretString;

use super::{TextError, text_in};

/// Why a text is not a valid secret. No message contains any part of the text.
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

/// The secret in the content of a file, without a byte order mark and without the end of the line.
///
/// # Errors
/// When the content is not exactly one secret.
pub fn secret_in(bytes: Vec<u8>) -> Result<SecretString, SecretError> {
    let text = text_in(bytes)?;
    secret_line(text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end_matches(['\r', '\n']))
}

/// The text as a secret.
///
/// # Errors
/// When the text is empty, has more than one line, or contains the character U+0000.
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
    fn a_secret_file_has_one_line() {
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
