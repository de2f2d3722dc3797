//! Derives the layout of a file of codes, separator and columns, from its first line, and parses lines by it.
//!
//! A line that is not clearly a code, or a code and a customer, is an error. A guess could give out text that is not a code, or give a
//! code to the wrong customer. CSV libraries are too lenient: they accept `"A1"x` and `A"1`.

use std::fmt;

use crate::model::{Character, CodeError, check_code, is_invisible};

/// In characters.
const MAX_CUSTOMER_ID: usize = 255;
/// None of these can be in a code.
const SEPARATORS: [char; 3] = [',', ';', '\t'];
/// Column names, in lower case and without spaces, `_` and `-`.
const CODE_NAMES: [&str; 10] = [
    "code",
    "codes",
    "coupon",
    "coupons",
    "couponcode",
    "voucher",
    "vouchers",
    "vouchercode",
    "promocode",
    "discountcode",
];
const CUSTOMER_NAMES: [&str; 4] = ["customer", "customerid", "user", "userid"];
/// Exports write these for an empty value.
const PLACEHOLDERS: [&str; 11] =
    ["null", "\\n", "nan", "none", "n/a", "#n/a", "#ref!", "#name?", "#value!", "#div/0!", "#null!"];

/// Why a line is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum LineError {
    #[error(transparent)]
    Code(#[from] CodeError),
    #[error("the customer's id is longer than {MAX_CUSTOMER_ID} characters")]
    CustomerTooLong,
    #[error("the customer's id has a control character in it")]
    CustomerControl,
    #[error("the customer's id has {} in it", Character(*.0))]
    CustomerInvisible(char),
    #[error("there is more than a code and a customer")]
    TooManyCells,
    #[error("there is more than the one column that the header names")]
    MoreThanHeader,
    #[error("the line is not UTF-8")]
    NotUtf8,
    #[error("the line is too long")]
    TooLong,
    #[error("the line has a carriage return in it: lines end with LF, or CR and LF")]
    CarriageReturn,
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("a quote is in the middle of a cell: quote the whole cell, and double each quote in it")]
    StrayQuote,
    #[error("{} is outside quotes, but the separator of the file is {}", Character(*.0), separator_name(*.1))]
    OtherSeparator(char, char),
    #[error("{0} is a formula that a spreadsheet wrote to keep leading zeros: write only its text")]
    Formula(String),
    #[error("{0} begins with an apostrophe, by which spreadsheets mark text: remove it")]
    Apostrophe(String),
    #[error("{0} is a long number that a spreadsheet rounded, so digits are lost: format the column as text")]
    Exponent(String),
    #[error("the customer's id {0} has a fraction, which a spreadsheet or a program added: remove it")]
    Fraction(String),
    #[error("{0} means an empty value: leave the cell empty")]
    Placeholder(String),
    #[error("U+FEFF (byte order mark) in the middle of the file: were two files put together?")]
    ByteOrderMark,
    #[error("a header in the middle of the file: were two files put together?")]
    HeaderAgain,
    #[error("the code has been uploaded or issued before")]
    Duplicate,
    #[error("a series could draw this code")]
    Drawable,
}

impl LineError {
    /// Whether the lines behind this one may have another layout. Then the whole file is refused.
    pub(super) const fn is_about_the_file(&self) -> bool {
        matches!(self, Self::ByteOrderMark | Self::HeaderAgain)
    }
}

/// Why no layout can be derived from the first line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HeaderError {
    #[error("{0:?} is not a supported separator: use comma, semicolon or tab")]
    Separator(String),
    #[error("a header with the unknown column {0:?}: use code and customer")]
    UnknownColumn(String),
    #[error("a header with a column that has no name")]
    NoName,
    #[error("a header that names the column {0} twice")]
    Twice(&'static str),
    #[error("a header without a column code")]
    NoCode,
    #[error(transparent)]
    Line(#[from] LineError),
}

/// A code, and the only customer who may receive it.
pub(super) type Row = (String, Option<String>);

/// The separator and the columns of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    separator: char,
    columns: Columns,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Columns {
    /// No header: the code, and perhaps the customer. `first` is the first code, printed so that people can check it.
    Unnamed { first: String },
    /// From the header.
    Named(Vec<Column>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Code,
    Customer,
}

impl Column {
    const fn name(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Customer => "customer",
        }
    }

    fn from_name(cell: &str) -> Option<Self> {
        let mut name = cell.to_lowercase();
        name.retain(|c| !matches!(c, ' ' | '_' | '-'));
        if CODE_NAMES.contains(&name.as_str()) {
            Some(Self::Code)
        } else {
            CUSTOMER_NAMES.contains(&name.as_str()).then_some(Self::Customer)
        }
    }
}

impl Layout {
    /// Derives the layout from the first line. `separator` comes from a line `sep=` before it.
    pub(super) fn from_first_line(line: &[u8], separator: Option<char>) -> Result<Self, HeaderError> {
        let line = text(line)?;
        let separator = separator.or_else(|| first_separator(line)).unwrap_or(',');
        let cells = cells(line, separator)?;
        if cells.iter().any(|cell| Column::from_name(cell).is_some()) {
            return Ok(Self { separator, columns: Columns::Named(header(&cells)?) });
        }
        let unnamed = Self { separator, columns: Columns::Unnamed { first: String::new() } };
        let (first, _) = unnamed.row(cells)?;
        Ok(Self { separator, columns: Columns::Unnamed { first } })
    }

    pub(super) const fn has_header(&self) -> bool {
        matches!(self.columns, Columns::Named(_))
    }

    /// Parses a line behind the header. `None` if its cells are empty.
    pub(super) fn parse_line(&self, line: &[u8]) -> Result<Option<Row>, LineError> {
        let cells = cells(text(line)?, self.separator)?;
        if cells.is_empty() {
            return Ok(None);
        }
        let columns: Option<Vec<Column>> = cells.iter().map(|cell| Column::from_name(cell)).collect();
        if columns.is_some_and(|columns| columns.contains(&Column::Code)) {
            return Err(LineError::HeaderAgain);
        }
        self.row(cells).map(Some)
    }

    fn row(&self, cells: Vec<String>) -> Result<Row, LineError> {
        let columns = match &self.columns {
            Columns::Unnamed { .. } => [Column::Code, Column::Customer].as_slice(),
            Columns::Named(columns) => columns,
        };
        if cells.len() > columns.len() {
            return Err(if columns.len() == 1 { LineError::MoreThanHeader } else { LineError::TooManyCells });
        }
        let (mut code, mut customer) = (String::new(), String::new());
        for (column, cell) in columns.iter().zip(cells) {
            *(match column {
                Column::Code => &mut code,
                Column::Customer => &mut customer,
            }) = cell;
        }
        check_spreadsheet_artefacts(&code)?;
        check_code(&code)?;
        check_customer(&customer)?;
        Ok((code, (!customer.is_empty()).then_some(customer)))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "separator {}, ", separator_name(self.separator))?;
        match &self.columns {
            Columns::Unnamed { first } => write!(formatter, "no header: the first code is {first}"),
            Columns::Named(columns) => {
                let names: Vec<&str> = columns.iter().map(|column| column.name()).collect();
                write!(formatter, "header {}", names.join(", "))
            }
        }
    }
}

/// The separator in a line `sep=;`, which spreadsheets write before the first line. `None` if it is not such a line.
pub(super) fn named_separator(line: &[u8]) -> Option<Result<char, HeaderError>> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches(['\r', '\n']);
    // Spreadsheets may quote the line as a whole, or add empty cells.
    let named = line.trim_matches('"').to_ascii_lowercase();
    let named = named.strip_prefix("sep=")?;
    let separator = SEPARATORS.into_iter().find(|separator| named.starts_with(*separator));
    let is_all = |separator: char| named.chars().all(|c| c == separator || c == ' ');
    Some(separator.filter(|separator| is_all(*separator)).ok_or_else(|| HeaderError::Separator(named.to_owned())))
}

const fn separator_name(separator: char) -> &'static str {
    match separator {
        ';' => "semicolon",
        '\t' => "tab",
        _ => "comma",
    }
}

/// Returns the line as text, without its line break.
fn text(line: &[u8]) -> Result<&str, LineError> {
    let line = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?.trim_end_matches(['\r', '\n']);
    if line.contains('\u{feff}') {
        return Err(LineError::ByteOrderMark);
    }
    if line.contains('\r') {
        return Err(LineError::CarriageReturn);
    }
    Ok(line)
}

/// The first separator outside quotes. Codes and column names contain none, so it is the separator of the file.
fn first_separator(line: &str) -> Option<char> {
    let mut is_quoted = false;
    line.chars().find(|c| {
        is_quoted ^= *c == '"';
        !is_quoted && SEPARATORS.contains(c)
    })
}

fn header(cells: &[String]) -> Result<Vec<Column>, HeaderError> {
    let mut columns = Vec::new();
    for cell in cells {
        if cell.is_empty() {
            return Err(HeaderError::NoName);
        }
        let column = Column::from_name(cell).ok_or_else(|| HeaderError::UnknownColumn(cell.clone()))?;
        if columns.contains(&column) {
            return Err(HeaderError::Twice(column.name()));
        }
        columns.push(column);
    }
    if columns.contains(&Column::Code) { Ok(columns) } else { Err(HeaderError::NoCode) }
}

/// Splits a line into cells, removes quotes and surrounding spaces, and drops empty cells at the end.
fn cells(line: &str, separator: char) -> Result<Vec<String>, LineError> {
    let mut cells = Vec::with_capacity(2);
    let mut rest = line;
    loop {
        let (cell, after) = match rest.trim_start_matches(' ').strip_prefix('"') {
            Some(quoted) => quoted_cell(quoted)?,
            None => plain_cell(rest, separator)?,
        };
        cells.push(cell);
        match after.strip_prefix(separator) {
            Some(next) => rest = next,
            None if after.is_empty() => break,
            None => return Err(LineError::StrayQuote),
        }
    }
    while cells.last().is_some_and(String::is_empty) {
        cells.pop();
    }
    Ok(cells)
}

/// The cell behind an opening quote, and the rest of the line behind the closing quote.
fn quoted_cell(quoted: &str) -> Result<(String, &str), LineError> {
    let mut cell = String::new();
    let mut rest = quoted;
    loop {
        let (before, after) = rest.split_once('"').ok_or(LineError::OpenQuote)?;
        cell.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                cell.push('"');
                rest = next;
            }
            None => return Ok((cell.trim_matches(' ').to_owned(), after.trim_start_matches(' '))),
        }
    }
}

/// The cell before the next separator, and the rest of the line from the separator on.
fn plain_cell(line: &str, separator: char) -> Result<(String, &str), LineError> {
    let (cell, rest) = line.split_at(line.find(separator).unwrap_or(line.len()));
    let cell = cell.trim_matches([' ', '\t']);
    if cell.starts_with('=') {
        return Err(LineError::Formula(shortened(cell)));
    }
    if cell.contains('"') {
        return Err(LineError::StrayQuote);
    }
    if let Some(other) = cell.chars().find(|c| SEPARATORS.contains(c)) {
        return Err(LineError::OtherSeparator(other, separator));
    }
    Ok((cell.to_owned(), rest))
}

fn check_customer(id: &str) -> Result<(), LineError> {
    if id.chars().count() > MAX_CUSTOMER_ID {
        return Err(LineError::CustomerTooLong);
    }
    if id.contains(|c: char| c.is_ascii_control()) {
        return Err(LineError::CustomerControl);
    }
    if let Some(c) = id.chars().find(|c| is_invisible(*c)) {
        return Err(LineError::CustomerInvisible(c));
    }
    check_spreadsheet_artefacts(id)?;
    match id.strip_suffix(".0") {
        Some(whole) if is_number(whole) => Err(LineError::Fraction(shortened(id))),
        _ => Ok(()),
    }
}

/// Refuses values that a spreadsheet or an export has altered.
fn check_spreadsheet_artefacts(cell: &str) -> Result<(), LineError> {
    let is_placeholder = PLACEHOLDERS.iter().any(|placeholder| cell.eq_ignore_ascii_case(placeholder));
    let as_exponent = || {
        let (number, exponent) = cell.split_once("E+").or_else(|| cell.split_once("e+"))?;
        let (whole, fraction) = number.split_once(['.', ',']).unwrap_or((number, "0"));
        Some([whole, fraction, exponent].into_iter().all(is_number))
    };
    match cell.chars().next() {
        Some('=') => Err(LineError::Formula(shortened(cell))),
        Some('\'') => Err(LineError::Apostrophe(shortened(cell))),
        Some(_) if is_placeholder => Err(LineError::Placeholder(cell.to_owned())),
        Some(_) if as_exponent() == Some(true) => Err(LineError::Exponent(shortened(cell))),
        Some(_) | None => Ok(()),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn shortened(cell: &str) -> String {
    let mut short = escaped(cell.chars().take(30));
    if cell.chars().nth(30).is_some() {
        short.push('\u{2026}');
    }
    short
}

/// Replaces invisible and control characters by their code points, for messages and tables.
pub(super) fn escaped(characters: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for c in characters {
        if is_invisible(c) { text.extend(c.escape_unicode()) } else { text.push(c) }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(first: &str) -> Result<String, String> {
        let layout = Layout::from_first_line(first.as_bytes(), None);
        layout.map(|layout| layout.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_line_gives_separator_and_columns() {
        for (first, expected) in [
            ("GIFT-A1", "separator comma, no header: the first code is GIFT-A1"),
            ("GIFT-A1;566881933", "separator semicolon, no header: the first code is GIFT-A1"),
            ("\"GIFT-A1\"\t\"Smith, John\"", "separator tab, no header: the first code is GIFT-A1"),
            ("code", "separator comma, header code"),
            ("Customer ID;\"Voucher-Code\";;", "separator semicolon, header customer, code"),
            ("user_id\tCODE", "separator tab, header customer, code"),
        ] {
            assert_eq!(layout(first).as_deref(), Ok(expected), "{first}");
        }
        for (first, reason) in [
            ("customer", "a header without a column code"),
            ("code,Coupon", "a header that names the column code twice"),
            ("code,amount", "a header with the unknown column \"amount\": use code and customer"),
            ("code,,customer", "a header with a column that has no name"),
            ("code;customer,id", "the character , is outside quotes, but the separator of the file is semicolon"),
            ("GIFT-A1|566881933", "the character | in it"),
            ("Gift card code", "the code has a space or a control character in it"),
            ("GIFT-A1;Smith, John", "the character , is outside quotes"),
            ("\"GIFT-A1;566881933\"", "the character ; in it"),
        ] {
            let refused = layout(first).unwrap_err();
            assert!(refused.contains(reason), "{first}: {refused}");
        }
    }

    #[test]
    fn a_line_may_name_the_separator() {
        let named = |line: &str| named_separator(line.as_bytes());
        assert_eq!(named("sep=;\r\n"), Some(Ok(';')));
        assert_eq!(named("\"SEP=\t\"\n"), Some(Ok('\t')));
        assert_eq!(named("sep=,,"), Some(Ok(',')));
        assert_eq!(named("sep=|"), Some(Err(HeaderError::Separator("|".to_owned()))));
        assert_eq!(named("sep=;,"), Some(Err(HeaderError::Separator(";,".to_owned()))));
        assert_eq!(named("A1"), None);
    }

    #[test]
    fn values_altered_by_spreadsheets_are_refused() {
        let layout = Layout::from_first_line(b"code,customer", None).unwrap();
        for (line, reason) in [
            ("=\"00077\"", "=\"00077\" is a formula"),
            ("\"=\"\"00077\"\"\"", "=\"00077\" is a formula"),
            ("A1,=\"00077\"", "=\"00077\" is a formula"),
            ("'00077", "'00077 begins with an apostrophe"),
            ("1.23457E+11", "1.23457E+11 is a long number that a spreadsheet rounded"),
            ("A1,5.66882E+08", "5.66882E+08 is a long number that a spreadsheet rounded"),
            ("A1,566881933.0", "the customer's id 566881933.0 has a fraction"),
            ("A1,NULL", "NULL means an empty value"),
            ("#N/A,c", "#N/A means an empty value"),
            ("A1,c\u{200b}", "the customer's id has U+200B (zero width space) in it"),
            ("A1,c\u{a0}", "the customer's id has U+00A0 (no-break space) in it"),
            ("A\u{ad}1", "the code has U+00AD (soft hyphen) in it"),
            ("\u{feff}A1", "U+FEFF (byte order mark) in the middle of the file"),
            ("customer,code", "a header in the middle of the file"),
        ] {
            let refused = layout.parse_line(line.as_bytes()).unwrap_err().to_string();
            assert!(refused.starts_with(reason), "{line}: {refused}");
        }
        for line in ["A+1,1+1", "1E5", "E+5", "1.0", "A1,1.5", "A1,\"c;3\""] {
            assert!(layout.parse_line(line.as_bytes()).unwrap().is_some(), "{line}");
        }
        assert_eq!(layout.parse_line(b" , \r\n"), Ok(None));
    }
}
