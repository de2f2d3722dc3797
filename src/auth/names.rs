use super::error::AuthError;

/// The longest name of a till or a client, in characters.
pub const MAX_NAME_LENGTH: usize = 255;

/// Rejects a name that cannot be stored, without a query: Postgres has no U+0000 in a text, and `apply` accepts no longer name.
pub(super) fn check_name(name: &str) -> Result<(), AuthError> {
    if name.contains('\0') {
        return Err(AuthError::Invalid("the name contains U+0000"));
    }
    if name.chars().count() > MAX_NAME_LENGTH {
        return Err(AuthError::Invalid("the name is too long"));
    }
    Ok(())
}
