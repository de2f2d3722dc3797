pub mod activity;
pub mod overview;
pub mod remaining;
pub mod verify;
