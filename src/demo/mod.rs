//! A Postgres of one's own, for `coupon-issuer demo` and for the tests.

pub mod private_postgres;
