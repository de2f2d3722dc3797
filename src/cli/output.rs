//! Prints without panicking when the reader is gone or the disk is full, and escapes control characters in stored text, which could
//! control the terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Prints the answer of a command. A reader that closes the pipe early (`| head`) is not an error.
pub(super) fn answer(text: impl Display) -> anyhow::Result<()> {
    match write(io::stdout().lock(), &text.to_string()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Reports what a command has done. The command has succeeded even if the report cannot be printed.
pub(super) fn report(text: impl Display) {
    let text = text.to_string();
    if let Err(error) = write(io::stdout().lock(), &text) {
        complain(format_args!("it is done, but standard output cannot be written ({error}): {text}"));
    }
}

/// Prints to standard error.
pub(super) fn complain(text: impl Display) {
    // If standard error is gone, there is nowhere to report it.
    let _ = write(io::stderr().lock(), &text.to_string());
}

/// Writes the text, and a line break if it lacks one at its end.
fn write(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(escape_controls(text).as_bytes())?;
    if !text.ends_with('\n') {
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Escapes control characters except line breaks.
fn escape_controls(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c.is_control() && c != '\n';
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) { escaped.extend(c.escape_unicode()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}
