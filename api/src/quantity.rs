//! Amounts of a resource, as Kubernetes writes them: `100m`, `1.5Gi`, `2e3`.
//!
//! A [`Quantity`] is a number of billionths and the family of suffixes it was
//! written with. Its text is canonical: the number is whole, with the largest
//! suffix that allows it, so two equal quantities of a family read the same.
//! As in Kubernetes, more precision than a billionth is rounded up (away from
//! zero) and amounts beyond 2⁶³−1 are cut to it.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Billionths in one.
const ONE: i128 = 1_000_000_000;
/// The largest amount that is kept, in billionths.
const MAX: i128 = i64::MAX as i128 * ONE;
/// Longest text that is read; Kubernetes' own texts stay far below.
const TEXT_MAX: usize = 256;

/// The family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `n`, `u`, `m`, none, `k`, `M`, `G`, `T`, `P`, `E`.
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`, `Ti`, `Pi`, `Ei`.
    BinarySi,
    /// `e3`, `E-3`.
    DecimalExponent,
}

/// An amount of something, exact to a billionth.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number followed by a suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The number is fine, what follows is not.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// More than one point, or an exponent beyond all use.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

impl Quantity {
    /// Nothing at all.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// `value` whole units, written with decimal suffixes.
    #[must_use]
    pub fn from_units(value: i64) -> Self {
        Self { nanos: i128::from(value) * ONE, format: Format::DecimalSi }
    }

    /// `value` thousandths, as CPU is counted.
    #[must_use]
    pub fn from_millis(value: i64) -> Self {
        Self { nanos: i128::from(value) * (ONE / 1000), format: Format::DecimalSi }
    }

    /// `value` bytes, written with binary suffixes.
    #[must_use]
    pub fn from_bytes(value: i64) -> Self {
        Self { nanos: i128::from(value) * ONE, format: Format::BinarySi }
    }

    /// Reads what a manifest may hold: a string or a number.
    ///
    /// # Errors
    /// As [`Quantity::from_str`]; [`QuantityError::Format`] for any other type.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    /// The amount in thousandths, rounded up. CPU requests: millicores.
    #[must_use]
    pub fn millis(self) -> i64 {
        let millis = divide_up(self.nanos, ONE / 1000);
        i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX })
    }

    /// The amount in whole units, rounded up. Memory: bytes; pods, devices: count.
    #[must_use]
    pub fn units(self) -> i64 {
        let units = divide_up(self.nanos, ONE);
        i64::try_from(units).unwrap_or(if units < 0 { i64::MIN } else { i64::MAX })
    }

    /// The amount rounded up to a thousandth, as resource lists are kept.
    #[must_use]
    pub fn rounded_to_millis(self) -> Self {
        let nanos = divide_up(self.nanos, ONE / 1000) * (ONE / 1000);
        Self { nanos: nanos.clamp(-MAX, MAX), format: self.format }
    }

    /// The family of suffixes it is written with.
    #[must_use]
    pub fn format(self) -> Format {
        self.format
    }

    /// Whether it is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.nanos % ONE == 0
    }

    /// Both together, in this one's format (the other's where this one is zero).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }

    /// This without the other; may be negative.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self { nanos: -other.nanos, format: other.format })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > TEXT_MAX {
            return Err(QuantityError::Format);
        }
        let (negative, unsigned) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end =
            unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Format);
        }
        if fraction.contains('.') {
            return Err(QuantityError::Number);
        }
        let (scale, format) = read_suffix(suffix)?;
        let nanos = scaled(whole, fraction, scale).min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * ONE;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let mut amount = self.nanos / ONE;
            let mut suffix = 0;
            while amount % 1024 == 0 && suffix + 1 < BINARY.len() {
                amount /= 1024;
                suffix += 1;
            }
            return write!(f, "{amount}{}", BINARY[suffix]);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let mut amount = self.nanos;
        let mut exponent: i32 = -9;
        while amount % 1000 == 0 && exponent < 18 {
            amount /= 1000;
            exponent += 3;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{amount}"),
            Format::DecimalExponent => write!(f, "{amount}e{exponent}"),
            _ => {
                let at = usize::try_from((exponent + 9) / 3).expect("between 0 and 9");
                write!(f, "{amount}{}", DECIMAL[at])
            }
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Suffixes of 10⁻⁹, 10⁻⁶, ... 10¹⁸.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
/// Suffixes of 1024⁰, 1024¹, ... 1024⁶.
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// What a number is multiplied with.
#[derive(Clone, Copy)]
enum Scale {
    /// A power of ten.
    Ten(i32),
    /// A power of 1024.
    Binary(u32),
}

fn read_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    if let Some(at) = DECIMAL.iter().position(|s| *s == suffix) {
        let exponent = i32::try_from(at).expect("at most 9") * 3 - 9;
        return Ok((Scale::Ten(exponent), Format::DecimalSi));
    }
    if let Some(at) = BINARY.iter().position(|s| *s == suffix) {
        return Ok((Scale::Binary(u32::try_from(at).expect("at most 6")), Format::BinarySi));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(QuantityError::Suffix);
        }
        // A huge exponent ends at the bounds of the amount anyway.
        let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
        return Ok((Scale::Ten(exponent.clamp(-1000, 1000)), Format::DecimalExponent));
    }
    let plain = |c: char| c.is_ascii_digit() || "eEinumkKMGTP+-".contains(c);
    Err(if suffix.chars().all(plain) { QuantityError::Suffix } else { QuantityError::Format })
}

/// `whole.fraction` times `scale` in billionths: rounded up, at most a little over [`MAX`].
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    match scale {
        Scale::Ten(exponent) => {
            // The decimal point moves; then digits up to the ninth after it count.
            let digits = || whole.bytes().chain(fraction.bytes());
            let point = i64::try_from(whole.len()).expect("bounded text") + i64::from(exponent) + 9;
            let mut amount: i128 = 0;
            let mut lost = false;
            for (at, digit) in (0i64..).zip(digits()) {
                if at < point {
                    amount = (amount * 10 + i128::from(digit - b'0')).min(MAX);
                } else {
                    lost |= digit != b'0';
                }
            }
            let n_digits = i64::try_from(digits().count()).expect("bounded text");
            let mut missing = point - n_digits;
            while missing > 0 && amount > 0 && amount < MAX {
                amount = (amount * 10).min(MAX);
                missing -= 1;
            }
            amount + i128::from(lost)
        }
        Scale::Binary(power) => {
            let factor = 1i128 << (10 * power);
            let whole = scaled(whole, "", Scale::Ten(0)) / ONE;
            // 1024⁶ is below 10¹⁹, and the fraction is cut to 18 digits: no overflow.
            let mut part: i128 = 0;
            let mut unit: i128 = 1;
            let mut lost = false;
            for digit in fraction.bytes() {
                if unit < 1_000_000_000_000_000_000 {
                    part = part * 10 + i128::from(digit - b'0');
                    unit *= 10;
                } else {
                    lost |= digit != b'0';
                }
            }
            // part/unit × factor × 10⁹ = (part × factor / unit) × 10⁹, without overflow.
            let product = part * factor;
            let nanos = product / unit * ONE + divide_up(product % unit * ONE, unit);
            whole.saturating_mul(factor).saturating_mul(ONE).min(MAX) + nanos + i128::from(lost)
        }
    }
}

/// `amount / unit`, rounded away from zero.
fn divide_up(amount: i128, unit: i128) -> i128 {
    let rest = amount % unit;
    amount / unit + rest.signum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(text: &str, canonical: &str) {
        let quantity: Quantity = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(quantity.to_string(), canonical, "{text}");
    }

    #[test]
    fn texts_become_canonical() {
        for (text, canonical) in [
            ("0", "0"),
            ("-0", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1023Ki", "1023Ki"),
            ("512", "512"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("1000k", "1M"),
            ("1500k", "1500k"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("1000", "1k"),
            ("1e0", "1"),
            ("100000000", "100M"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            ("0.0000000001", "1n"),
            ("1n", "1n"),
            ("100Ei", "9223372036854775807"),
            ("1e999", "9223372036854775807"),
            ("1e-999", "1e-9"),
        ] {
            check(text, canonical);
        }
    }

    #[test]
    fn errors_are_kubernetes() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("-", QuantityError::Format),
            (".", QuantityError::Format),
            ("1KiB", QuantityError::Format),
            ("1Kii", QuantityError::Suffix),
            ("1mm", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1.2.3", QuantityError::Number),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text:?}");
        }
        assert_eq!(Quantity::from_json(&json!(true)), Err(QuantityError::Format));
        assert_eq!(Quantity::from_json(&json!(1.5)).unwrap().millis(), 1500);
    }

    #[test]
    fn cpu_and_memory_round_up() {
        assert_eq!("100u".parse::<Quantity>().unwrap().millis(), 1);
        assert_eq!("2".parse::<Quantity>().unwrap().millis(), 2000);
        assert_eq!("64Mi".parse::<Quantity>().unwrap().units(), 64 << 20);
        assert_eq!("100m".parse::<Quantity>().unwrap().units(), 1);
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
        assert_eq!(Quantity::from_millis(1500).to_string(), "1500m");
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back(units in any::<i64>(), millis in 0..1000i64, binary: bool) {
            let mut quantity = Quantity::from_units(units / 2).plus(Quantity::from_millis(millis));
            if binary {
                quantity.format = Format::BinarySi;
            }
            let text = quantity.to_string();
            let again: Quantity = text.parse().unwrap();
            prop_assert_eq!(again, quantity);
            prop_assert_eq!(again.to_string(), text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[+-]?[0-9.]{0,30}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let again: Quantity = quantity.to_string().parse().unwrap();
                prop_assert_eq!(again, quantity);
            }
        }

        #[test]
        fn garbage_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn order_and_sum_agree_with_numbers(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
            let (x, y) = (Quantity::from_millis(a), Quantity::from_millis(b));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x.plus(y).millis(), a + b);
            prop_assert_eq!(x.minus(y).millis(), a - b);
        }
    }
}
