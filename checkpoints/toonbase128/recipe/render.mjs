// Renders the pictures: packed RGB bytes and their labels, in shards that a stopped run does not make again.
// node render.mjs <folder> [set=count ...]      (every picture is a function of its set's name and its number)
import { fork } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { paintAdventurer } from './adventurer.mjs';
import { paintCaptioned } from './captioned.mjs';
import { paintDrawing } from './drawings.mjs';
import { dice } from './random.mjs';

export const SIZE_PX = 128;
const SHARD = 2048;
const COUNTS = { heldout: 2048, adventurer: 2048, drawings: 65536, captioned: 163840 };
const PAINT = {
  captioned: (random) => paintCaptioned(random, SIZE_PX, false),
  heldout: (random) => paintCaptioned(random, SIZE_PX, true),
  drawings: (random) => paintDrawing(random, SIZE_PX),
  adventurer: (random) => paintAdventurer(random, SIZE_PX),
};

/** RGBA => RGB, into `out` at the picture's place. */
function pack(rgba, out, place) {
  const pixels = SIZE_PX * SIZE_PX;
  for (let pixel = 0, to = 3 * pixels * place; pixel < pixels; pixel++) {
    out[to++] = rgba[4 * pixel];
    out[to++] = rgba[4 * pixel + 1];
    out[to++] = rgba[4 * pixel + 2];
  }
}

const shardFile = (folder, [set, shard]) => `${folder}/${set}-${String(shard).padStart(3, '0')}.rgb`;

/** Pixels last, under their final name at once: a shard that is there is whole. */
function renderShard(folder, set, shard, count) {
  const file = shardFile(folder, [set, shard]);
  const bytes = Buffer.alloc(3 * SIZE_PX * SIZE_PX * count);
  const rows = [];
  for (let place = 0; place < count; place++) {
    const { pixels, labels } = PAINT[set](dice(`${set} ${shard * SHARD + place}`));
    pack(pixels, bytes, place);
    rows.push(JSON.stringify(labels));
  }
  writeFileSync(file.replace(/rgb$/, 'jsonl'), `${rows.join('\n')}\n`);
  writeFileSync(`${file}.part`, bytes);
  renameSync(`${file}.part`, file);
}

/** First shards first, so that training can begin on a part of each set. */
function shardsOf(counts) {
  const shards = Object.entries(counts).flatMap(([set, count]) =>
    [...Array(Math.ceil(count / SHARD)).keys()].map((shard) => [set, shard, Math.min(SHARD, count - shard * SHARD)]),
  );
  return shards.sort(([, one], [, other]) => one - other);
}

/** One process for each shard: the renderer gives its memory back only when its process ends. */
function renderApart(shard) {
  return new Promise((done, failed) => {
    const child = fork(import.meta.filename, process.argv.slice(2), { env: { ...process.env, SHARD: shard.join(' ') } });
    child.on('exit', (code) => (code === 0 ? done() : failed(new Error(`shard ${shard} ended with ${code}`))));
  });
}

async function renderAll(shards) {
  const work = async () => {
    while (shards.length) await renderApart(shards.shift());
  };
  await Promise.all([...Array(availableParallelism())].map(work));
}

const [folder, ...asked] = process.argv.slice(2);
const chosen = Object.fromEntries(asked.map((word) => word.split('=')).map(([set, count]) => [set, Number(count)]));
if (process.env.SHARD) {
  const [set, shard, count] = process.env.SHARD.split(' ');
  renderShard(folder, set, Number(shard), Number(count));
} else {
  mkdirSync(folder, { recursive: true });
  await renderAll(shardsOf(asked.length ? chosen : COUNTS).filter((shard) => !existsSync(shardFile(folder, shard))));
}
