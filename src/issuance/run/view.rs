use std::collections::HashMap;

use crate::db::SeriesAtRevision;
use crate::model::{IssuanceHistory, SeriesId};

/// A series in the current round.
pub(super) struct View {
    pub(super) settings: SeriesAtRevision,
    /// Whether the write cannot guard what the history decides.
    pub(super) needs_history: bool,
    /// `None`: the settings are enough to issue, and the history was not loaded.
    pub(super) history: Option<ViewedHistory>,
}

/// The history of the customer and the series.
pub(super) struct ViewedHistory {
    pub(super) history: IssuanceHistory,
    /// Whether all of it was flushed when it was read.
    pub(super) is_flushed: bool,
}

pub(super) type Views = HashMap<SeriesId, View>;
