use super::args::Common;
use super::output::answer;

/// Fails if `serve` would refuse the settings.
pub(super) fn show(common: &Common) -> anyhow::Result<()> {
    common.serve_settings()?;
    answer(common.settings_as_toml()?)
}
