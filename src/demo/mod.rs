//! A private Postgres, for `demo` and the integration tests.

mod account;
mod data_dir;
mod error;
mod installation;
mod server;
mod watchdog;

pub use error::PrivatePostgresError;
pub use installation::find_binaries;
pub use server::{Options, PrivatePostgres};
