use std::collections::HashMap;

use crate::db::SeriesAtRevision;
use crate::model::{IssuanceHistory, SeriesId};

/// A series in the current round.
pub(super) struct View {
    pub(super) settings: SeriesAtRevision,
    /// `None`: the settings come from the cache, and the history was not loaded.
    pub(super) history: Option<IssuanceHistory>,
}

pub(super) type Views = HashMap<SeriesId, View>;
