use std::fmt;

use super::difference::Difference;
use crate::model::OrgId;

/// The result of `apply`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line for each thing that was created or changed.
    pub changes: Vec<String>,
    /// One line for each thing that is stored but not in the file.
    pub left_alone: Vec<String>,
}

impl Report {
    /// Adds a line for a difference. Returns whether there is one.
    pub(super) fn add_change(&mut self, org_id: OrgId, what: &str, difference: Difference) -> bool {
        let separator = if what.is_empty() { "" } else { " " };
        let subject = format!("org {}{separator}{what}", org_id.0);
        match difference {
            Difference::None => return false,
            Difference::New => self.changes.push(format!("{subject}: created")),
            Difference::Settings(settings) => self.changes.push(format!("{subject}: {}", settings.join(", "))),
        }
        true
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.changes.iter().chain(&self.left_alone) {
            writeln!(formatter, "{line}")?;
        }
        match self.changes.len() {
            0 => write!(formatter, "no change"),
            1 => write!(formatter, "1 change"),
            count => write!(formatter, "{count} changes"),
        }
    }
}
