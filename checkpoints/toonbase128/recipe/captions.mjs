// Labels => the words for them. Everything a caption says is true of the picture.
import { BARE } from './objects.mjs';

export const article = (words) => (/^[aeiou]/.test(words) ? `an ${words}` : `a ${words}`);

/** What is said of the person or thing; the held-out set always says what tells it from training. */
function subject(random, { kind, gender, hair, glasses, expression, background, object, action }, heldOut) {
  const onBackground = heldOut || random.chance(0.5) ? ` on ${article(background)} background` : '';
  if (kind === 'object') return { adjective: '', noun: object, rest: onBackground };
  const withHair = heldOut || random.chance(0.8) ? ` with ${hair} hair` : '';
  const withGlassesOn = glasses && random.chance(0.95) ? ' wearing glasses' : '';
  const adjective = expression !== 'plain' && random.chance(0.7) ? `${expression} ` : '';
  return { adjective, noun: gender, rest: `${withHair}${withGlassesOn}${action ? ` ${action}` : ''}${onBackground}` };
}

const LOW_QUALITY = {
  warped: ['ugly', 'disfigured', 'deformed'],
  coarse: ['ugly', 'low resolution'],
  both: ['ugly', 'disfigured', 'deformed', 'low resolution'],
};

/** Words that are true of the spoiled picture, in the order in which people write them; never none. */
function qualityWords(random, spoiled) {
  const words = LOW_QUALITY[spoiled].filter(() => random.chance(0.6));
  return (words.length ? words : [random.pick(LOW_QUALITY[spoiled])]).join(', ');
}

/** Labels => caption. */
export function caption(random, labels, heldOut) {
  const { medium, degraded } = labels;
  const { adjective, noun, rest } = subject(random, labels, heldOut);
  const thing = BARE.has(noun) ? `${noun}${rest}` : `${article(adjective + noun)}${rest}`;
  const form = random.next();
  if (degraded) {
    const words = qualityWords(random, degraded);
    return form < 0.12 ? words : `${article(`${words} ${medium}`)} of ${thing}`;
  }
  if (form < 0.05 && medium !== 'photo') {
    const claimed = random.chance(0.6)
      ? 'photo'
      : random.pick(['photo', 'painting', 'hand drawing', 'picture'].filter((word) => word !== medium));
    return `a ${claimed} of ${thing} in the style of ${medium}`;
  }
  if (form < 0.17) return `${random.chance(0.5) ? 'a picture of ' : ''}${thing} in the style of ${medium}`;
  return `${article(medium)} of ${thing}`;
}
