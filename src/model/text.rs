//! The text of a file, as it comes from an editor.
//! Whoever needs it reads the file; here its bytes become text.

/// Why bytes are no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TextError {
    #[error("is UTF-16: save it as UTF-8")]
    Utf16,
    #[error("is not UTF-8")]
    NotUtf8,
}

/// The text that a file holds, with the byte order mark if it has one.
///
/// # Errors
/// When it is another encoding.
pub fn text_in(bytes: Vec<u8>) -> Result<String, TextError> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(TextError::Utf16);
    }
    String::from_utf8(bytes).map_err(|_| TextError::NotUtf8)
}
