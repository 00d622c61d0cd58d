//! Batches and entries of the journal, and their bytes.

use bytes::Bytes;

use super::{Key, Revision, engine::Error};
use crate::meta::Json;

/// The first byte of a batch's data.
const FORMAT: u8 = 1;

/// The flags of an entry.
const IS_DELETE: u8 = 1;
const IS_CREATE: u8 = 2;
const HAS_BEFORE: u8 = 4;

/// One append: the changes of revisions `prev + 1 ..= last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub prev: Revision,
    pub last: Revision,
    /// Tells this attempt to append from all others.
    pub id: i64,
    pub entries: Vec<Entry>,
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub revision: Revision,
    pub key: Key,
    pub is_delete: bool,
    /// The generation of the schema under which `json` was written.
    pub schema: u64,
    /// With its resourceVersion; of a deleted object the last state.
    pub json: Json,
    pub before: Before,
}

/// What was before an entry, as far as the journal must say it: with it, a start rebuilds the recent events from recent batches alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Before {
    /// Found in one of the batches before, not long ago.
    #[default]
    Recent,
    /// Nothing: the object was created.
    Absent,
    /// This object at its revision, and the generation of its schema.
    Object { revision: Revision, schema: u64, json: Json },
}

/// How far a jump goes beyond every revision that anyone can have seen.
const JUMP: Revision = 1 << 32;

impl Batch {
    /// A batch without changes that leaves revisions out. It follows a restore or a failover that lost revisions: what was given to
    /// others before is never given again, and nothing before it can be told.
    pub fn jump(prev: Revision, seen: Revision, id: i64) -> Self {
        Self { prev, last: prev.max(seen) + JUMP, id, entries: Vec::new() }
    }

    pub fn is_jump(&self) -> bool {
        self.entries.is_empty()
    }

    /// The data column: a format byte, then lz4 of the entries.
    pub fn encode(&self) -> Vec<u8> {
        let size = self.entries.iter().map(|it| it.json.len() + 96).sum();
        let mut plain = Vec::with_capacity(size);
        for entry in &self.entries {
            entry.write(&mut plain);
        }
        let mut data = vec![FORMAT];
        data.extend(lz4_flex::compress_prepend_size(&plain));
        data
    }

    pub fn decode(prev: Revision, last: Revision, id: i64, data: &[u8]) -> Result<Self, Error> {
        let damaged = |what: &str| Error::Damaged(format!("batch {prev}..{last}: {what}"));
        let body = data.strip_prefix(&[FORMAT]).ok_or_else(|| damaged("an unknown format"))?;
        let plain = Bytes::from(lz4_flex::decompress_size_prepended(body).map_err(|error| damaged(&error.to_string()))?);
        let mut reader = Reader(plain);
        let mut entries = Vec::new();
        while !reader.0.is_empty() {
            entries.push(Entry::read(&mut reader).ok_or_else(|| damaged("an entry is cut off"))?);
        }
        Ok(Self { prev, last, id, entries })
    }
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.revision.to_le_bytes());
        out.extend(self.schema.to_le_bytes());
        let before = match &self.before {
            Before::Recent => 0,
            Before::Absent => IS_CREATE,
            Before::Object { .. } => HAS_BEFORE,
        };
        out.push(u8::from(self.is_delete) * IS_DELETE | before);
        for part in [self.key.resource.as_bytes(), self.key.namespace.as_bytes(), self.key.name.as_bytes(), &self.json.text()] {
            write_part(out, part);
        }
        if let Before::Object { revision, schema, json } = &self.before {
            out.extend(revision.to_le_bytes());
            out.extend(schema.to_le_bytes());
            write_part(out, &json.text());
        }
    }

    fn read(reader: &mut Reader) -> Option<Self> {
        let (revision, schema, flags) = (reader.u64()?, reader.u64()?, reader.take(1)?[0]);
        let key = Key::new(&reader.text()?, &reader.text()?, &reader.text()?);
        let json = reader.json()?;
        let before = match flags & (IS_CREATE | HAS_BEFORE) {
            IS_CREATE => Before::Absent,
            HAS_BEFORE => Before::Object { revision: reader.u64()?, schema: reader.u64()?, json: reader.json()? },
            _ => Before::Recent,
        };
        Some(Self { revision, key, is_delete: flags & IS_DELETE != 0, schema, json, before })
    }
}

fn write_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend((part.len() as u32).to_le_bytes());
    out.extend(part);
}

struct Reader(Bytes);

impl Reader {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        (self.0.len() >= length).then(|| self.0.split_to(length))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.as_ref().try_into().ok()?))
    }

    fn part(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(self.take(4)?.as_ref().try_into().ok()?);
        self.take(length as usize)
    }

    /// A copy, so that one small object does not keep the whole batch in memory.
    fn json(&mut self) -> Option<Json> {
        Some(Json::from(Bytes::copy_from_slice(&self.part()?)))
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.part()?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_survive_and_damage_is_found() {
        let entry = |revision, is_delete, before| Entry {
            revision,
            key: Key::new("apps/deployments", "ns", "web"),
            is_delete,
            schema: 3,
            json: "{}".into(),
            before,
        };
        let old = Before::Object { revision: 3, schema: 2, json: "{\"a\":1}".into() };
        let entries = vec![entry(5, false, Before::Absent), entry(6, true, Before::Recent), entry(7, false, old)];
        let batch = Batch { prev: 4, last: 7, id: -7, entries };
        let data = batch.encode();
        assert_eq!(Batch::decode(4, 7, -7, &data).expect("decodes"), batch);
        for length in 0..data.len() {
            assert!(Batch::decode(4, 7, -7, &data[..length]).is_err(), "{length}");
        }
    }
}
