//! The settings: defaults, then a file, then the environment.

mod error;
mod layers;
mod log_filter;
mod ranges;
mod settings;

pub use error::{Origin, SettingsError};
pub use ranges::RANGES;
pub use settings::{
    ActivitySettings, AuthSettings, DatabaseSettings, ForwardedHeader, HttpSettings, IssuingSettings, LogFormat,
    LogSettings, MetricsSettings, RateLimitSettings, Settings, TracesSettings, WriterSettings,
};
