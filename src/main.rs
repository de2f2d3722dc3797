//! The coupon-issuer command; see [`coupon_issuer::cli`].

use std::process::ExitCode;

/// Requests allocate often and briefly, which this allocator handles faster than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    coupon_issuer::cli::run().await
}
