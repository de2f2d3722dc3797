//! A file of codes, read line by line: `code` or `code,customer`, quoted as in CSV where need be.
//!
//! Memory stays flat whatever is in the file: a line is bounded, and a quote never runs into the next line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The most characters of a code, and of a customer's id.
const LONGEST: usize = 255;
/// The most bytes of a line: both, quoted, in four-byte characters.
const LONGEST_LINE: usize = 4096;
/// The names that a first line may give its columns.
const HEADERS: [&str; 3] = ["customer", "customerid", "customer_id"];

/// A code and whom it is for, or what is wrong with the line.
pub(super) type Content = Result<(String, Option<String>), &'static str>;

/// A line that is neither blank nor a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: i64,
    pub(super) content: Content,
}

/// What a file is known by.
pub(super) struct Fingerprint {
    pub(super) sha256: Vec<u8>,
    pub(super) bytes: u64,
}

/// Reads the whole file once.
pub(super) fn fingerprint(path: &Path) -> io::Result<Fingerprint> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let read = file.fill_buf()?;
        if read.is_empty() {
            return Ok(Fingerprint { sha256: hash.finalize().to_vec(), bytes });
        }
        hash.update(read);
        let length = read.len();
        bytes += length as u64;
        file.consume(length);
    }
}

/// The lines of a file, from a place that an earlier reading has come to.
pub(super) struct Lines {
    input: BufReader<File>,
    /// Bytes read, from the beginning of the file.
    pub(super) bytes: u64,
    /// Lines read.
    pub(super) number: i64,
}

impl Lines {
    /// Opens a file at this place.
    pub(super) fn open(path: &Path, bytes: u64, number: i64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(bytes))?;
        Ok(Self { input: BufReader::with_capacity(1 << 16, file), bytes, number })
    }

    /// The next line that is neither blank nor a header; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut raw = Vec::new();
        loop {
            raw.clear();
            let read = self.input.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut raw)?;
            if read == 0 {
                return Ok(None);
            }
            self.bytes += read as u64;
            self.number += 1;
            let is_whole = raw.last() == Some(&b'\n') || read < LONGEST_LINE;
            if !is_whole {
                self.skip_rest()?;
                return Ok(Some(Line { number: self.number, content: Err("the line is too long") }));
            }
            let line = if self.number == 1 { raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&raw) } else { &raw };
            let line = line.trim_ascii();
            if line.is_empty() || (self.number == 1 && is_header(line)) {
                continue;
            }
            return Ok(Some(Line { number: self.number, content: parse(line) }));
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            let buffered = self.input.fill_buf()?;
            let end = buffered.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffered.len(), |at| at + 1);
            let is_over = end.is_some() || buffered.is_empty();
            self.input.consume(length);
            self.bytes += length as u64;
            if is_over {
                return Ok(());
            }
        }
    }
}

fn is_header(line: &[u8]) -> bool {
    let mut line = line.to_ascii_lowercase();
    line.retain(|byte| *byte != b'"');
    let mut columns = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    columns.next() == Some(b"code")
        && columns.next().is_none_or(|column| HEADERS.iter().any(|name| name.as_bytes() == column))
        && columns.next().is_none()
}

/// One line, without its end.
fn parse(line: &[u8]) -> Content {
    let line = std::str::from_utf8(line).map_err(|_| "the line is not UTF-8")?;
    if line.contains('\r') {
        return Err("the line has a carriage return in it: lines end with LF, or CR and LF");
    }
    let columns: Vec<String> = if line.contains('"') {
        quoted(line)?
    } else {
        line.split(',').map(|column| column.trim().to_owned()).collect()
    };
    let (code, customer) = match columns.as_slice() {
        [code] => (code, ""),
        [code, customer] => (code, customer.as_str()),
        _ => return Err("there is more than a code and a customer"),
    };
    if code.is_empty() {
        return Err("the code is missing");
    }
    if code.chars().count() > LONGEST {
        return Err("the code is longer than 255 characters");
    }
    if code.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("the code has a space or a control character in it");
    }
    if customer.chars().count() > LONGEST {
        return Err("the customer's id is longer than 255 characters");
    }
    if customer.contains(char::is_control) {
        return Err("the customer's id has a control character in it");
    }
    Ok((code.clone(), (!customer.is_empty()).then(|| customer.to_owned())))
}

fn quoted(line: &str) -> Result<Vec<String>, &'static str> {
    if !line.matches('"').count().is_multiple_of(2) {
        return Err("a quote is not closed");
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .buffer_capacity(line.len())
        .trim(csv::Trim::All)
        .from_reader(line.as_bytes());
    match reader.records().next() {
        Some(Ok(record)) => Ok(record.iter().map(str::to_owned).collect()),
        _ => Err("the line is not CSV"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(text: &[u8]) -> Vec<(i64, Content)> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let mut lines = Lines::open(file.path(), 0, 0).unwrap();
        let mut read = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            read.push((line.number, line.content));
        }
        assert_eq!(lines.bytes, text.len() as u64);
        read
    }

    #[expect(clippy::unnecessary_wraps, reason = "stands for what is read")]
    fn code(code: &str, customer: Option<&str>) -> Content {
        Ok((code.to_owned(), customer.map(str::to_owned)))
    }

    #[test]
    fn plain_lines_and_csv() {
        let text = b"\xef\xbb\xbfCode, customerId\r\nA1\r\n\r\n A2 , c 2 \n\"A\"\"3\",\"c,3\"\nA4,\n\xc3\x84-5";
        let expected = [
            (2, code("A1", None)),
            (4, code("A2", Some("c 2"))),
            (5, code("A\"3", Some("c,3"))),
            (6, code("A4", None)),
            (7, code("\u{c4}-5", None)),
        ];
        assert_eq!(lines(text), expected);
        // Only the first line can be a header, and only by these names.
        assert_eq!(lines(b"A1\ncode\n"), [(1, code("A1", None)), (2, code("code", None))]);
        assert_eq!(lines(b"code,voucher\n"), [(1, code("code", Some("voucher")))]);
    }

    #[test]
    fn what_is_no_code_is_told_and_ends_with_its_line() {
        let long = "x".repeat(256);
        for (line, reason) in [
            (",c", "the code is missing"),
            ("A1,c,d", "there is more than a code and a customer"),
            ("A 1", "the code has a space or a control character in it"),
            ("A\u{0}1", "the code has a space or a control character in it"),
            ("A1,c\u{0}", "the customer's id has a control character in it"),
            ("\"A1", "a quote is not closed"),
            ("\"A1\"\r\"A2\"", "the line has a carriage return in it: lines end with LF, or CR and LF"),
            (long.as_str(), "the code is longer than 255 characters"),
            (&format!("A1,{long}"), "the customer's id is longer than 255 characters"),
            (&long.repeat(100), "the line is too long"),
        ] {
            let text = format!("{line}\nB2\n");
            assert_eq!(lines(text.as_bytes()), [(1, Err(reason)), (2, code("B2", None))]);
        }
        assert_eq!(lines(b"A\xff\nB2"), [(1, Err("the line is not UTF-8")), (2, code("B2", None))]);
    }

    #[test]
    fn reading_goes_on_where_it_stopped() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"A1\nA2\nA3\n").unwrap();
        let mut first = Lines::open(file.path(), 0, 0).unwrap();
        first.next().unwrap();
        let mut second = Lines::open(file.path(), first.bytes, first.number).unwrap();
        assert_eq!(second.next().unwrap(), Some(Line { number: 2, content: code("A2", None) }));
    }
}
