//! The JSON of an object as it lies in memory.

use bytes::Bytes;

/// Texts of this many bytes are kept compressed where that halves them. Definitions of custom resources and large ConfigMaps are what
/// grows so large; they shrink to a fifth, and few of them are read often.
const PACKED_FROM: usize = 16 << 10;

/// A text that is shared by all who clone it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    Plain(Bytes),
    /// LZ4 of a text of so many bytes.
    Packed { len: usize, block: Bytes },
}

impl<Text: Into<Bytes>> From<Text> for Json {
    fn from(text: Text) -> Self {
        let text = text.into();
        if text.len() < PACKED_FROM {
            return Self::Plain(text);
        }
        let block = lz4_flex::block::compress(&text);
        if block.len() > text.len() / 2 { Self::Plain(text) } else { Self::Packed { len: text.len(), block: Bytes::copy_from_slice(&block) } }
    }
}

impl Json {
    /// The bytes of its text.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(text) => text.len(),
            Self::Packed { len, .. } => *len,
        }
    }

    /// Small texts are shared, others made anew.
    pub fn text(&self) -> Bytes {
        match self {
            Self::Plain(text) => text.clone(),
            // What was packed here always comes out whole.
            Self::Packed { len, block } => lz4_flex::block::decompress(block, *len).map(Bytes::from).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_texts_shrink_and_come_back() {
        // Marsaglia's xorshift: nothing in it repeats.
        let next = |it: &u64| Some([13, -7, 17].iter().fold(*it, |it, by| it ^ if *by > 0 { it << by } else { it >> -by }));
        let random: Vec<u8> = std::iter::successors(Some(88172645463325252), next).take(PACKED_FROM).map(|it| it as u8).collect();
        for (text, is_packed) in [(vec![b'a'; PACKED_FROM - 1], false), (vec![b'a'; PACKED_FROM], true), (random, false)] {
            let json = Json::from(text.clone());
            assert_eq!((json.len(), matches!(json, Json::Packed { .. })), (text.len(), is_packed));
            assert_eq!(json.text(), text);
        }
    }
}
