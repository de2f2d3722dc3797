use super::args::Common;
use super::output::answer;

/// Fails where `serve` would refuse the settings.
pub(super) fn show(common: &Common) -> anyhow::Result<()> {
    common.to_serve()?;
    answer(common.shown()?)
}
