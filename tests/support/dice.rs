//! Chance that can be repeated, and what it does to good input.

use serde_json::{Value, json};

/// A small generator (xorshift), so that a failure is found again.
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    pub fn is_one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A value with some of it broken: other types, odd texts, nothing.
pub fn broken(value: &Value, dice: &mut Dice) -> Value {
    const TEXTS: [&str; 12] = ["", "-", "a=b", "1Ei", "-1e-9", "100%", "..", "::ffff:1.2.3.4", "1.2.3.4/33", "\u{0}", "é💥", "{{}}"];
    if dice.is_one_in(12) {
        return match dice.below(9) {
            0 => Value::Null,
            1 => json!(TEXTS[dice.below(TEXTS.len())]),
            2 => json!(i64::MIN),
            3 => json!(u64::MAX),
            4 => json!(1e300),
            5 => json!([]),
            6 => json!({}),
            7 => json!([null, {"name": null}, [[]]]),
            _ => json!(true),
        };
    }
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| (if dice.is_one_in(30) { TEXTS[dice.below(TEXTS.len())].to_owned() } else { key.clone() }, broken(value, dice))).collect::<serde_json::Map<_, _>>().into(),
        Value::Array(list) => list.iter().chain(list.first().filter(|_| dice.is_one_in(8))).map(|it| broken(it, dice)).collect(),
        Value::String(text) if dice.is_one_in(8) => json!(format!("{text}{}", TEXTS[dice.below(TEXTS.len())])),
        other => other.clone(),
    }
}

/// Bytes with some flipped, cut or doubled.
pub fn torn(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(4) {
            _ if bytes.is_empty() => (),
            0 => bytes[at] = dice.next() as u8,
            1 => bytes.truncate(at),
            2 => bytes[at] ^= 1 << dice.below(8),
            _ => bytes = [&bytes[..at], &bytes[at / 2..]].concat(),
        }
    }
    bytes
}
