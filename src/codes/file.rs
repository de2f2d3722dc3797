//! Checks a file of codes as a whole before any code is stored, then reads it line by line.
//!
//! Memory stays constant: a line has a maximum length, and a quote ends with its line.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::layout::{HeaderError, Layout, LineError, Row, escaped, named_separator};

/// In bytes: fits a code and a customer, quoted, in four-byte characters.
const MAX_LINE: usize = 4096;
/// How many bytes of a line a message quotes.
const MAX_QUOTED: usize = 60;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a file is refused as a whole.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("this is a directory")]
    Directory,
    #[error(
        "this is a pipe or a device: write the codes to a file, so that an interrupted import can continue where it stopped"
    )]
    Pipe,
    #[error("this is UTF-16, as Excel's \"Unicode Text\" is: save it as UTF-8 (in Excel: \"CSV UTF-8\")")]
    Utf16,
    #[error("this is a workbook or another ZIP file: save it as CSV")]
    Workbook,
    #[error("this is compressed: unpack it first")]
    Compressed,
    #[error("line {line} has NUL characters in it: this is UTF-16 without a byte order mark, or not text")]
    Binary { line: i64 },
    #[error("line {line} cannot be parsed, so the whole file is refused: {reason}. It is \"{quoted}\"")]
    Line { line: i64, reason: HeaderError, quoted: String },
}

/// The code and customer of a line, or why it is invalid.
pub(super) type Content = Result<Row, LineError>;

/// A line that is neither blank nor a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: i64,
    pub(super) content: Content,
}

/// A position in a file: the bytes and lines before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) bytes: u64,
    pub(super) lines: i64,
}

/// A file that passed the check.
#[derive(Debug)]
pub(super) struct CodeFile {
    file: File,
    /// Identifies the file in later runs.
    pub(super) sha256: Vec<u8>,
    pub(super) bytes: u64,
    /// `None` if the file holds no codes.
    pub(super) layout: Option<Layout>,
    /// Where the lines behind the header begin.
    body: Position,
}

impl CodeFile {
    /// Opens a file and reads all of it: for its hash, and to check it. An invalid line does not fail the check, unless it puts the
    /// meaning of the other lines in doubt.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        if path.as_os_str() == "-" {
            return Err(FileError::Pipe);
        }
        // Check the type first: opening a pipe blocks until somebody writes to it.
        let kind = fs::metadata(path)?.file_type();
        if kind.is_dir() {
            return Err(FileError::Directory);
        }
        if !kind.is_file() {
            return Err(FileError::Pipe);
        }
        let file = File::open(path)?;
        let (sha256, bytes) = fingerprint(&file)?;
        let (layout, body) = read_head(&file)?;
        let checked = Self { file, sha256, bytes, layout, body };
        checked.check_lines()?;
        Ok(checked)
    }

    /// The lines from a position on at which an earlier run stopped.
    pub(super) fn lines_from(&self, position: Position) -> io::Result<Lines<'_>> {
        let position = if position.bytes > self.body.bytes { position } else { self.body };
        Ok(Lines { raw: RawLines::at(&self.file, position)?, layout: self.layout.as_ref() })
    }

    fn check_lines(&self) -> Result<(), FileError> {
        let mut lines = self.lines_from(Position::default())?;
        while let Some(line) = lines.next()? {
            if let Err(reason) = line.content
                && reason.is_about_the_file()
            {
                return Err(lines.raw.refuse(reason.into()));
            }
        }
        Ok(())
    }
}

fn fingerprint(file: &File) -> io::Result<(Vec<u8>, u64)> {
    let mut input = BufReader::with_capacity(1 << 16, file);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let read = input.fill_buf()?;
        if read.is_empty() {
            return Ok((hash.finalize().to_vec(), bytes));
        }
        hash.update(read);
        let length = read.len();
        bytes += length as u64;
        input.consume(length);
    }
}

/// Derives the layout from the first line that is not blank. Returns it with the position of the first code: behind a header, or
/// the first line itself.
fn read_head(file: &File) -> Result<(Option<Layout>, Position), FileError> {
    let mut lines = RawLines::at(file, Position::default())?;
    let start = lines.input.fill_buf()?;
    match start {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(FileError::Utf16),
        [b'P', b'K', 3, 4, ..] | [0xd0, 0xcf, 0x11, 0xe0, ..] => return Err(FileError::Workbook),
        [0x1f, 0x8b, ..] => return Err(FileError::Compressed),
        _ => {} // Anything else is read as text.
    }
    let mut separator = None;
    loop {
        let before = lines.position;
        if !lines.advance()? {
            return Ok((None, before));
        }
        if lines.line.contains(&0) {
            return Err(FileError::Binary { line: lines.position.lines });
        }
        if lines.is_too_long {
            return Err(lines.refuse(LineError::TooLong.into()));
        }
        if lines.is_blank() {
            continue;
        }
        if separator.is_none()
            && let Some(named) = named_separator(&lines.line)
        {
            separator = Some(named.map_err(|reason| lines.refuse(reason))?);
            continue;
        }
        let layout = Layout::from_first_line(&lines.line, separator).map_err(|reason| lines.refuse(reason))?;
        let body = if layout.has_header() { lines.position } else { before };
        return Ok((Some(layout), body));
    }
}

/// The lines of a file that are neither blank nor a header.
pub(super) struct Lines<'f> {
    raw: RawLines<'f>,
    layout: Option<&'f Layout>,
}

impl Lines<'_> {
    /// The position behind the last line that was read.
    pub(super) const fn position(&self) -> Position {
        self.raw.position
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let Some(layout) = self.layout else { return Ok(None) };
        while self.raw.advance()? {
            if self.raw.is_blank() {
                continue;
            }
            let content = match layout.parse_line(&self.raw.line) {
                _ if self.raw.is_too_long => Some(Err(LineError::TooLong)),
                content => content.transpose(),
            };
            if let Some(content) = content {
                return Ok(Some(Line { number: self.raw.position.lines, content }));
            }
        }
        Ok(None)
    }
}

/// All lines, not parsed.
struct RawLines<'f> {
    input: BufReader<&'f File>,
    position: Position,
    /// The last line read, with its line break. If it is too long, only its beginning.
    line: Vec<u8>,
    is_too_long: bool,
}

impl<'f> RawLines<'f> {
    fn at(mut file: &'f File, position: Position) -> io::Result<Self> {
        file.seek(SeekFrom::Start(position.bytes))?;
        Ok(Self { input: BufReader::with_capacity(1 << 16, file), position, line: Vec::new(), is_too_long: false })
    }

    /// Reads the next line. Returns false at the end of the file.
    fn advance(&mut self) -> io::Result<bool> {
        self.line.clear();
        let read = self.input.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(false);
        }
        let is_first = self.position == Position::default();
        self.position.bytes += read as u64;
        self.position.lines += 1;
        self.is_too_long = read == MAX_LINE && self.line.last() != Some(&b'\n');
        if self.is_too_long {
            self.skip_rest()?;
        }
        if is_first && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(true)
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            let buffered = self.input.fill_buf()?;
            let end = buffered.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffered.len(), |index| index + 1);
            let is_over = end.is_some() || buffered.is_empty();
            self.input.consume(length);
            self.position.bytes += length as u64;
            if is_over {
                return Ok(());
            }
        }
    }

    /// Spreadsheets write an empty row as a line of separators.
    fn is_blank(&self) -> bool {
        self.line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b';'))
    }

    /// The error for a file that is refused because of the last line read.
    fn refuse(&self, reason: HeaderError) -> FileError {
        FileError::Line { line: self.position.lines, reason, quoted: quoted(&self.line) }
    }
}

/// Quotes the beginning of a line in a message. Escapes invisible characters and bytes that are not UTF-8: they could control the
/// terminal.
fn quoted(line: &[u8]) -> String {
    let line = line.trim_ascii_end();
    let mut quoted = String::new();
    for chunk in line[..line.len().min(MAX_QUOTED)].utf8_chunks() {
        quoted.push_str(&escaped(chunk.valid().chars()));
        quoted.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    if line.len() > MAX_QUOTED {
        quoted.push('\u{2026}');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::Write as _;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::model::{check_code, is_invisible};

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn lines(text: &[u8]) -> Vec<(i64, Content)> {
        read_all(text).unwrap()
    }

    fn read_all(text: &[u8]) -> Result<Vec<(i64, Content)>, String> {
        let open = CodeFile::open(file(text).path()).map_err(|error| error.to_string())?;
        let mut lines = open.lines_from(Position::default()).unwrap();
        let mut read = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            read.push((line.number, line.content));
        }
        assert_eq!(lines.position().bytes, text.len() as u64);
        Ok(read)
    }

    #[expect(clippy::unnecessary_wraps, reason = "has the type of a parsed line")]
    fn code(code: &str, customer: Option<&str>) -> Content {
        Ok((code.to_owned(), customer.map(str::to_owned)))
    }

    #[test]
    fn plain_lines_and_csv() {
        let text = b"\xef\xbb\xbfCode, customerId\r\nA1\r\n\r\n A2 , c 2 \n\"A3\",\"c,\"\"3\"\nA4,\n,,\nA5\r\r\n \"A6\" , \"c\" ";
        let expected = [
            (2, code("A1", None)),
            (4, code("A2", Some("c 2"))),
            (5, code("A3", Some("c,\"3"))),
            (6, code("A4", None)),
            (8, code("A5", None)),
            (9, code("A6", Some("c"))),
        ];
        assert_eq!(lines(text), expected);
        assert_eq!(lines(b"\n\nA1\nA2;\n")[0], (3, code("A1", None)));
        assert_eq!(lines(b"customer;code\n7;A1\n;A2\n"), [(2, code("A1", Some("7"))), (3, code("A2", None))]);
        assert_eq!(lines(b"customer\tcode\r\n\tA1\r\n"), [(2, code("A1", None))]);
        assert_eq!(lines(b"sep=;\r\ncode;customer\r\nA1;c\r\n"), [(3, code("A1", Some("c")))]);
        for nothing in [b"".as_slice(), b"\n", b"code\n", b"sep=;\n", b"\xef\xbb\xbf"] {
            assert_eq!(lines(nothing), []);
        }
    }

    #[test]
    fn an_invalid_line_is_reported_and_ends_with_its_line() {
        let long = "x".repeat(256);
        for (line, reason) in [
            (",c", "the code is missing"),
            ("A1,c,d", "there is more than a code and a customer"),
            ("A 1", "the code has a space or a control character in it"),
            ("A\u{0}1", "the code has a space or a control character in it"),
            ("A1;c", "the character ; is outside quotes, but the separator of the file is comma"),
            ("A1,c\u{0}", "the customer's id has a control character in it"),
            ("\"A1", "a quote is not closed"),
            ("\"A1\"x", "a quote is in the middle of a cell: quote the whole cell, and double each quote in it"),
            ("A\"1\"", "a quote is in the middle of a cell: quote the whole cell, and double each quote in it"),
            ("\"A1\"\r\"A2\"", "the line has a carriage return in it: lines end with LF, or CR and LF"),
            (long.as_str(), "the code is longer than 255 characters"),
            (&format!("A1,{long}"), "the customer's id is longer than 255 characters"),
            (&long.repeat(100), "the line is too long"),
        ] {
            let read = lines(format!("A0\n{line}\nB2\n").as_bytes());
            assert_eq!(read.len(), 3);
            assert_eq!((read[1].0, read[1].1.as_ref().unwrap_err().to_string()), (2, reason.to_owned()));
            assert_eq!(read[2], (3, code("B2", None)));
        }
        assert_eq!(lines(b"A0\nA\xff\nB2")[1..], [(2, Err(LineError::NotUtf8)), (3, code("B2", None))]);
    }

    #[test]
    fn a_file_with_an_unknown_layout_is_refused_as_a_whole() {
        let long = "x".repeat(5000);
        for (text, reason) in [
            (b"gift card\nA1\n".as_slice(), "line 1 cannot be parsed"),
            (
                b"\n\xe2\x80\x8b\nA1\n",
                "line 2 cannot be parsed, so the whole file is refused: the code has U+200B (zero width space) in it; allowed are the letters A to Z and a to z, digits and - _ . / +. It is \"\\u{200b}\"",
            ),
            (b"code,amount\nA1,5\n", "It is \"code,amount\""),
            (b"A\xff\x1b[2J\n", "the line is not UTF-8. It is \"A\\xff\\u{1b}[2J\""),
            (b"A1\rA2\r", "lines end with LF, or CR and LF. It is \"A1\\u{d}A2\""),
            (b"sep=|\nA1|c\n", "\"|\" is not a supported separator"),
            (b"sep=;\nA1,c\n", "the character , is outside quotes, but the separator of the file is semicolon"),
            (long.as_bytes(), "the line is too long"),
            (b"A1,c\nA2,d\n\xef\xbb\xbfA3,e\n", "line 3 cannot be parsed, so the whole file is refused: U+FEFF"),
            (b"\xef\xbb\xbf\xef\xbb\xbfA1\n", "U+FEFF (byte order mark) in the middle of the file"),
            (
                b"code,customer\nA1,c\ncustomer,code\nd,A2\n",
                "line 3 cannot be parsed, so the whole file is refused: a header in the middle",
            ),
            (b"\xff\xfeA\x001\x00\n\x00", "is UTF-16"),
            (b"A\x001\x00\n\x00", "line 1 has NUL characters in it"),
            (b"PK\x03\x04\x14\x00", "is a workbook"),
            (b"\x1f\x8b\x08", "is compressed"),
        ] {
            let refused = read_all(text).unwrap_err();
            assert!(refused.contains(reason), "{refused}\nnot\n{reason}");
        }
        let refused = read_all(long.as_bytes()).unwrap_err();
        assert!(refused.len() < 300, "{refused}");
        let directory = CodeFile::open(&std::env::temp_dir()).unwrap_err().to_string();
        assert_eq!(directory, "this is a directory");
    }

    /// After each line: the lines read before and those read from its position on are the whole file.
    #[test]
    fn reading_continues_where_it_stopped() {
        let text = b"customer;code\n7;A1\n\n;A2\nx\n8;A3\n";
        let (all, file) = (lines(text), file(text));
        for stop in 1..=all.len() {
            let open = CodeFile::open(file.path()).unwrap();
            let mut first = open.lines_from(Position::default()).unwrap();
            for _ in 0..stop {
                first.next().unwrap();
            }
            let position = first.position();
            let mut second = open.lines_from(position).unwrap();
            let mut rest = Vec::new();
            while let Some(line) = second.next().unwrap() {
                rest.push((line.number, line.content));
            }
            assert_eq!(rest, all[stop..]);
        }
    }

    /// Fragments of real files, and random bytes.
    fn anything() -> impl Strategy<Value = Vec<u8>> {
        const PIECES: &[&str] = &[
            "A1",
            "gift-9",
            "566881933",
            ",",
            ";",
            "\t",
            "\"",
            "\"\"",
            "\n",
            "\r\n",
            "\r",
            " ",
            "code",
            "customer",
            "sep=;",
            "=\"00077\"",
            "\u{feff}",
            "\u{200b}",
            "\u{a0}",
            "\u{c4}",
            "\0",
            "'",
            "|",
            "\u{1b}[2J",
        ];
        let piece = prop_oneof![
            6 => select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 1..4),
        ];
        // Half of the files have a valid first line.
        let first = select(&["", "A0,c\n"]);
        (first, vec(piece, 0..40)).prop_map(|(first, pieces)| [first.as_bytes(), &pieces.concat()].concat())
    }

    const HEADERS: &[&[&str]] = &[&[], &["code", "customer"], &["customer", "code"]];

    /// Well-formed rows: a code, a customer, and whether each is quoted.
    fn rows() -> impl Strategy<Value = Vec<(String, Option<String>, bool)>> {
        // The prefix keeps them apart from column names and spreadsheet artefacts.
        let code = "X[A-Za-z0-9._/+-]{0,20}";
        let customer = proptest::option::of("K[ -~\u{e0}-\u{ff}]{0,20}k");
        vec((code, customer, any::<bool>()), 1..20)
    }

    /// Rows as CSV.
    fn written(
        rows: &[(String, Option<String>, bool)],
        separator: char,
        header: &[&str],
        end: &str,
        before: &str,
    ) -> String {
        let mut text = before.to_owned();
        let is_swapped = header.first() == Some(&"customer");
        if !header.is_empty() {
            text.push_str(&header.join(&separator.to_string()));
            text.push_str(end);
        }
        for (code, customer, is_quoted) in rows {
            let customer = customer.as_deref().unwrap_or_default();
            let needs_quotes = |cell: &str| *is_quoted || cell.contains([',', ';', '\t', '"']);
            let cell = |cell: &str| {
                if needs_quotes(cell) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
            };
            let (mut left, mut right) = (cell(code), cell(customer));
            if is_swapped {
                std::mem::swap(&mut left, &mut right);
            }
            write!(text, "{left}{separator}{right}{end}").unwrap();
        }
        text
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused_and_no_code_is_outside_the_alphabet(text in anything()) {
            for (_, content) in read_all(&text).unwrap_or_default() {
                if let Ok((code, customer)) = content {
                    prop_assert_eq!(check_code(&code), Ok(()));
                    let customer = customer.unwrap_or_else(|| "c".to_owned());
                    prop_assert!(!customer.is_empty() && !customer.contains(is_invisible), "{:?}", customer);
                }
            }
        }

        #[test]
        fn well_formed_rows_are_read_in_every_format(
            rows in rows(),
            separator in select([',', ';', '\t'].as_slice()),
            header in select(HEADERS),
            end in select(["\n", "\r\n"].as_slice()),
            mark in any::<bool>(),
            named in any::<bool>(),
        ) {
            let mut before = if mark { "\u{feff}".to_owned() } else { String::new() };
            if named {
                write!(before, "sep={separator}{end}").unwrap();
            }
            let text = written(&rows, separator, header, end, &before);
            let read: Vec<Content> = lines(text.as_bytes()).into_iter().map(|(_, content)| content).collect();
            let expected: Vec<Content> = rows.into_iter().map(|(code, customer, _)| Ok((code, customer))).collect();
            prop_assert_eq!(read, expected, "{}", text);
        }
    }
}
