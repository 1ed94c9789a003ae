//! What templates expect of Python and of transformers, where minijinja differs.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use serde_json::Value as Json;
use std::fmt::Write as _;

/// Prints truth values and none as Python does, which is what a template's text was tested with.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// transformers' `tojson`: `json.dumps` with non-ASCII characters as they are and no HTML escapes.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let bad = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    let json = serde_json::to_value(value).map_err(|e| bad(format!("tojson: {e}")))?;
    let indent = options.get::<Option<usize>>("indent")?;
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let separators = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(other) => return Err(bad(format!("tojson: expected 2 separators, found {}", other.len()))),
        // Python leaves no space before a line break.
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut out = String::new();
    Dumper { indent, separators, ascii, sort }.dump(&json, 0, &mut out);
    Ok(out)
}

/// The settings of `json.dumps`.
struct Dumper {
    indent: Option<usize>,
    separators: [String; 2],
    ascii: bool,
    sort: bool,
}

impl Dumper {
    fn dump(&self, json: &Json, depth: usize, out: &mut String) {
        match json {
            Json::Array(list) => {
                let items = list.iter().map(|item| (None, item));
                self.container(['[', ']'], items, depth, out);
            }
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, item)| (Some(key.as_str()), item)).collect();
                if self.sort {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.container(['{', '}'], entries.into_iter(), depth, out);
            }
            Json::String(text) => self.string(text, out),
            plain => out.push_str(&plain.to_string()),
        }
    }

    fn container<'a>(
        &self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = (Option<&'a str>, &'a Json)>,
        depth: usize,
        out: &mut String,
    ) {
        out.push(open);
        let empty = items.len() == 0;
        for (i, (key, item)) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.separators[0]);
            }
            self.line(depth + 1, out);
            if let Some(key) = key {
                self.string(key, out);
                out.push_str(&self.separators[1]);
            }
            self.dump(item, depth + 1, out);
        }
        if !empty {
            self.line(depth, out);
        }
        out.push(close);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = Json::from(text).to_string();
        if !self.ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

/// The present moment in `strftime` form, in UTC (the standard library does not know the local zone).
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    strftime(format, since.as_secs())
}

/// `strftime` with the directives that templates use, English names.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let (days, seconds) = (unix_seconds / 86400, unix_seconds % 86400);
    let (year, month, day) = civil_from_days(days);
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[month as usize - 1];
    // 1 January 1970 was a Thursday.
    let day_name = DAYS[(days as usize + 4) % 7];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{day_of_year:03}"),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            other => {
                let what = format!("strftime_now: %{} is not known", other.map(String::from).unwrap_or_default());
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        };
    }
    Ok(out)
}

/// Year, month, day of a day counted from 1 January 1970. Years are taken to begin in March, so that the leap day is
/// their last and months before it have fixed places.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Days since 1 March of the year 0, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, with which transformers marks the assistant's tokens for
/// training. They become blocks without effect, so that the whitespace rules stay as they were.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let word = tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let plain = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        out += &rest[..start + 2];
        out += &if plain == word { tag.to_owned() } else { tag.replacen(word, plain, 1) };
        rest = &rest[start + len..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_of_known_moments() {
        // `date -u -d @N` of GNU coreutils.
        let all = "%Y %y %m %d %j %H %I %M %S %p %B %b %A %a %F %T %%";
        let of = |at| strftime(all, at).unwrap();
        assert_eq!(of(0), "1970 70 01 01 001 00 12 00 00 AM January Jan Thursday Thu 1970-01-01 00:00:00 %");
        assert_eq!(of(951_827_696), "2000 00 02 29 060 12 12 34 56 PM February Feb Tuesday Tue 2000-02-29 12:34:56 %");
        assert_eq!(
            of(1_735_689_599),
            "2024 24 12 31 366 23 11 59 59 PM December Dec Tuesday Tue 2024-12-31 23:59:59 %"
        );
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn days_and_dates_agree() {
        for days in (0..200_000).step_by(13) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn generation_tags() {
        let source = "a{%- generation %}b {% endgeneration -%} c {% if generation %}{{ '{% x' }}";
        assert_eq!(without_generation_tags(source), "a{%- if true %}b {% endif -%} c {% if generation %}{{ '{% x' }}");
    }
}
