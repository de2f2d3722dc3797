use super::toml::Section;
use crate::model::Access;

/// Reads an access level.
pub(super) fn access(section: &Section<'_>, key: &'static str) -> Option<Access> {
    section.choice(key, "none, read, write", Access::parse)
}
