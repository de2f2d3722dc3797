//! Fills and reports the pools of `DISC_CODE_PIN` series. The writer (`db::writer`) gives the codes out.

mod file;
mod forecast;
mod import;
mod layout;

pub use file::FileError;
pub use forecast::{Pools, status};
pub use import::{DryRun, ImportError, ImportEvent, dry_run, import};
pub use layout::{HeaderError, Layout, LineError};

pub use crate::db::code_pool::ImportState;
