use tokio::time::{Instant, timeout_at};

use super::error::IssueError;

/// The result of a read, or [`IssueError::TimedOut`] at the deadline. Pass a large future pinned: passed by value, it takes its space
/// in the caller's future twice.
pub(super) async fn before_deadline<T, E: Into<IssueError>>(
    deadline: Instant,
    read: impl Future<Output = Result<T, E>>,
) -> Result<T, IssueError> {
    timeout_at(deadline, read).await.map_err(|_elapsed| IssueError::TimedOut)?.map_err(Into::into)
}
