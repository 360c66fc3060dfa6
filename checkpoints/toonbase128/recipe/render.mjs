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

/** Pixels last, under their final name at once: a shard that is there is whole. */
function renderShard(folder, set, shard, count) {
  const path = `${folder}/${set}-${String(shard).padStart(3, '0')}`;
  if (existsSync(`${path}.rgb`)) return;
  const bytes = Buffer.alloc(3 * SIZE_PX * SIZE_PX * count);
  const rows = [];
  for (let place = 0; place < count; place++) {
    const { pixels, labels } = PAINT[set](dice(`${set} ${shard * SHARD + place}`));
    pack(pixels, bytes, place);
    rows.push(JSON.stringify(labels));
  }
  writeFileSync(`${path}.jsonl`, `${rows.join('\n')}\n`);
  writeFileSync(`${path}.part`, bytes);
  renameSync(`${path}.part`, `${path}.rgb`);
}

/** First shards first, so that training can begin on a part of each set. */
function shardsOf(counts) {
  const shards = Object.entries(counts).flatMap(([set, count]) =>
    [...Array(Math.ceil(count / SHARD)).keys()].map((shard) => [set, shard, Math.min(SHARD, count - shard * SHARD)]),
  );
  return shards.sort(([, one], [, other]) => one - other);
}

function runWorkers(workers) {
  const run = (worker) =>
    new Promise((done, failed) => {
      const env = { ...process.env, WORKER: `${worker}/${workers}` };
      const child = fork(import.meta.filename, process.argv.slice(2), { env });
      child.on('exit', (code) => (code === 0 ? done() : failed(new Error(`worker ${worker} ended with ${code}`))));
    });
  return Promise.all([...Array(workers).keys()].map(run));
}

const [folder, ...asked] = process.argv.slice(2);
const chosen = Object.fromEntries(asked.map((word) => word.split('=')).map(([set, count]) => [set, Number(count)]));
if (process.env.WORKER) {
  const [worker, workers] = process.env.WORKER.split('/').map(Number);
  shardsOf(asked.length ? chosen : COUNTS).forEach(([set, shard, count], place) => {
    if (place % workers === worker) renderShard(folder, set, shard, count);
  });
} else {
  mkdirSync(folder, { recursive: true });
  await runWorkers(availableParallelism());
}
