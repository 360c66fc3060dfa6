// Writes the characters that recipes are chosen and checked on: sixteen pictures each, and four that are held out.
// node characters.mjs <folder>
import { mkdirSync, writeFileSync } from 'node:fs';
import { deflateSync, crc32 } from 'node:zlib';
import { CHARACTERS, paintCharacter } from './adventurer.mjs';
import { dice } from './random.mjs';

const SIZE_PX = 256;
const [SHOWN, HELD_OUT] = [16, 4];

function chunk(kind, data) {
  const tail = Buffer.concat([Buffer.from(kind), data]);
  const [length, check] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  check.writeUInt32BE(crc32(tail));
  return Buffer.concat([length, tail, check]);
}

/** RGBA pixels => an RGB PNG file. */
function writePng(path, rgba) {
  const rows = Buffer.alloc(SIZE_PX * (1 + 3 * SIZE_PX));
  for (let pixel = 0; pixel < SIZE_PX * SIZE_PX; pixel++) {
    rgba.copy(rows, pixel * 3 + Math.floor(pixel / SIZE_PX) + 1, pixel * 4, pixel * 4 + 3);
  }
  const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0]);
  header.writeUInt32BE(SIZE_PX, 0);
  header.writeUInt32BE(SIZE_PX, 4);
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  const parts = [chunk('IHDR', header), chunk('IDAT', deflateSync(rows)), chunk('IEND', Buffer.alloc(0))];
  writeFileSync(path, Buffer.concat([signature, ...parts]));
}

const [folder] = process.argv.slice(2);
for (const name of Object.keys(CHARACTERS)) {
  for (let index = 0; index < SHOWN + HELD_OUT; index++) {
    const set = `${folder}/${name}${index < SHOWN ? '' : '_held_out'}`;
    mkdirSync(set, { recursive: true });
    const pixels = paintCharacter(dice(`${name} ${index}`), name, index, SIZE_PX);
    writePng(`${set}/${String(index).padStart(2, '0')}.png`, pixels);
  }
}
