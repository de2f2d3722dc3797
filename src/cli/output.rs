//! What commands print. A reader that has gone, or a full disk, never makes a command panic; and what is stored and shown is no
//! command to the terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Prints what a command was asked for. A reader that has read enough and gone (`| head`) is no failure.
pub(super) fn answer(text: impl Display) -> anyhow::Result<()> {
    match write(io::stdout().lock(), &text.to_string()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Prints what a command has done. It is done, so that it cannot be printed is no failure of the command.
pub(super) fn report(text: impl Display) {
    let text = text.to_string();
    if let Err(error) = write(io::stdout().lock(), &text) {
        complain(format_args!("it is done, but standard output cannot be written ({error}): {text}"));
    }
}

/// Prints to standard error.
pub(super) fn complain(text: impl Display) {
    // Nobody is left to be told that standard error is gone.
    let _ = write(io::stderr().lock(), &text.to_string());
}

/// Writes a text as lines, with the last one ended.
fn write(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(plain(text).as_bytes())?;
    if !text.ends_with('\n') {
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// The text with its control characters escaped, except for the ends of lines: a description may hold what moves a cursor.
fn plain(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c.is_control() && c != '\n';
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) { plain.extend(c.escape_unicode()) } else { plain.push(c) }
    }
    Cow::Owned(plain)
}
