// gzip (RFC 1952, RFC 1951) in one call: a browser's own DecompressionStream answers later, and paper does not wait.

const DAMAGED = "the packed chart library is damaged";
const CODE_BITS = 15;

// Codes of a canonical Huffman code by the next 15 bits of input: symbol * 16 + its number of bits; 0 = no such code.
function codebook(lengths) {
  const book = new Uint16Array(1 << CODE_BITS);
  let code = 0;
  for (let length = 1; length <= CODE_BITS; length += 1, code <<= 1) {
    lengths.forEach((of, symbol) => {
      if (of !== length) return;
      // Codes are packed from their highest bit on, everything else from its lowest.
      let reversed = 0;
      for (let bit = 0; bit < length; bit += 1) reversed |= ((code >> bit) & 1) << (length - 1 - bit);
      for (let place = reversed; place < book.length; place += 1 << length) book[place] = symbol * 16 + length;
      code += 1;
    });
  }
  return book;
}

// What a symbol stands for: the least value and how many extra bits are added to it.
function scale(least, extras) {
  return extras.map((extra) => ({ extra, least: (least += 1 << extra) - (1 << extra) }));
}

const LENGTHS = [...scale(3, Array.from({ length: 28 }, (_, i) => (i < 8 ? 0 : (i >> 2) - 1))), { extra: 0, least: 258 }];
const DISTANCES = scale(1, Array.from({ length: 30 }, (_, i) => (i < 4 ? 0 : (i >> 1) - 1)));
const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
const REPEATS = { 16: [3, 2], 17: [3, 3], 18: [11, 7] };

const REMAINDERS = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit += 1) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let sum = -1;
  for (let i = 0; i < bytes.length; i += 1) sum = (sum >>> 8) ^ REMAINDERS[(sum ^ bytes[i]) & 255];
  return ~sum >>> 0;
}

// packed: one member without name or comment -> its bytes. Throws where the bytes are no such member.
function gunzip(packed) {
  const tail = new DataView(packed.buffer, packed.byteOffset + packed.length - 8);
  const [sum, size] = [tail.getUint32(0, true), tail.getUint32(4, true)];
  const out = new Uint8Array(size);
  let [filled, at, held, num] = [0, 10, 0, 0];

  const hold = (wanted) => {
    for (; num < wanted; num += 8) held |= packed[at++] << num;
  };
  const drop = (bits) => {
    held >>>= bits;
    num -= bits;
  };
  const take = (bits) => {
    hold(bits);
    const value = held & ((1 << bits) - 1);
    drop(bits);
    return value;
  };
  const symbol = (book) => {
    hold(CODE_BITS);
    const found = book[held & ((1 << CODE_BITS) - 1)];
    if (!found || at > packed.length) throw new Error(DAMAGED);
    drop(found & 15);
    return found >> 4;
  };

  const stored = () => {
    at -= num >> 3;
    [held, num] = [0, 0];
    const length = packed[at] | (packed[at + 1] << 8);
    out.set(packed.subarray(at + 4, at + 4 + length), filled);
    [at, filled] = [at + 4 + length, filled + length];
  };
  const fixedBooks = () => [
    codebook(Array.from({ length: 288 }, (_, i) => (i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8))),
    codebook(Array(30).fill(5)),
  ];
  const ownBooks = () => {
    const [literals, distances, codes] = [take(5) + 257, take(5) + 1, take(4) + 4];
    const lengthsOfCodes = Array(19).fill(0);
    for (const place of ORDER.slice(0, codes)) lengthsOfCodes[place] = take(3);
    const book = codebook(lengthsOfCodes);
    const lengths = [];
    while (lengths.length < literals + distances) {
      const next = symbol(book);
      if (next < 16) lengths.push(next);
      else {
        const [least, extra] = REPEATS[next];
        const repeated = next === 16 ? lengths[lengths.length - 1] : 0;
        for (let left = least + take(extra); left > 0; left -= 1) lengths.push(repeated);
      }
    }
    return [codebook(lengths.slice(0, literals)), codebook(lengths.slice(literals))];
  };

  for (let isLast = 0; !isLast; ) {
    isLast = take(1);
    const kind = take(2);
    if (kind === 3) throw new Error(DAMAGED);
    if (kind === 0) {
      stored();
      continue;
    }
    const [literals, distances] = kind === 1 ? fixedBooks() : ownBooks();
    for (let next = symbol(literals); next !== 256; next = symbol(literals)) {
      if (next < 256) {
        out[filled++] = next;
        continue;
      }
      const length = LENGTHS[next - 257].least + take(LENGTHS[next - 257].extra);
      const far = DISTANCES[symbol(distances)];
      const distance = far.least + take(far.extra);
      // Byte by byte: what is copied may reach into itself.
      for (const end = filled + length; filled < end; filled += 1) out[filled] = out[filled - distance];
    }
  }
  if (filled !== size || crc32(out) !== sum) throw new Error(DAMAGED);
  return out;
}
