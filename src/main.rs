//! The `coupon-issuer` command.

use std::process::ExitCode;

/// Requests make many short-lived allocations, which this allocator handles faster than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    coupon_issuer::cli::run().await
}
