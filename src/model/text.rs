/// Why bytes are not UTF-8 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TextError {
    #[error("is UTF-16: save it as UTF-8")]
    Utf16,
    #[error("is not UTF-8")]
    NotUtf8,
}

/// The text in the content of a file, with a byte order mark if there is one.
///
/// # Errors
/// When the encoding is not UTF-8.
pub fn text_in(bytes: Vec<u8>) -> Result<String, TextError> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(TextError::Utf16);
    }
    String::from_utf8(bytes).map_err(|_| TextError::NotUtf8)
}
