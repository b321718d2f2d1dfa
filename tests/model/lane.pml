/* A lane with owner words (shm/lane.h, shm/pool.h): a producer and a consumer, each killed at most once, after any step, while
 * the other and the heir of the first death go on. Memory is strong here: what weak memory does is for ThreadSanitizer.
 *
 * Forbidden: a frame delivered twice or out of order; a buffer used by one that does not own it; at rest, a buffer that is
 * not home, or a published frame that was neither delivered nor in the hands of a killed consumer.
 * Must fail: -DHEAD_FIRST (head before the owner words), -DTAIL_FIRST (tail before them), -DUSE_FIRST (frames used before
 * them), -DNO_POSITION (the word says only which lane), -DWORD_THEN_TAIL (a reclaim that reads the tail after the word) */

#define SLOTS 4
#define BUFS 3
#define FRAMES 4
#define BURST 2

#define FREE 0
#define BY_PRODUCER 1
#define BY_CONSUMER 2
#define INFLIGHT 3

byte state[BUFS], position[BUFS]; /* the owner word: one store writes both */
byte slot[SLOTS], head, tail;
byte payload[BUFS];               /* a frame is a number; frame n is published at position n */
byte expected;                    /* the least number that may be delivered */
byte lost;
bool producer_dead, consumer_dead;
byte producer_deaths, consumer_deaths;

#define WORD(b, s, p) d_step { state[b] = s; position[b] = p }
#ifdef NO_POSITION
#define NAMES(b, p) (state[b] == INFLIGHT)
#else
#define NAMES(b, p) (state[b] == INFLIGHT && position[b] == p)
#endif
#define MAY_DIE(who) if :: skip :: atomic { who##_deaths == 0 -> who##_deaths = 1; who##_dead = true; goto dead } fi

proctype producer()
{
	byte b, k, mine = head;
	do
	:: mine < FRAMES && mine + BURST - tail <= SLOTS ->
#ifdef HEAD_FIRST
		head = mine + BURST;
		MAY_DIE(producer);
#endif
		k = 0;
		do
		:: k < BURST ->
			atomic {
				if
				:: state[0] == FREE -> b = 0
				:: state[1] == FREE -> b = 1
				:: state[2] == FREE -> b = 2
				fi;
				WORD(b, BY_PRODUCER, 0)
			}
			MAY_DIE(producer);
			assert(state[b] == BY_PRODUCER);
			payload[b] = mine + k;
			WORD(b, INFLIGHT, mine + k);
			MAY_DIE(producer);
			slot[(mine + k) % SLOTS] = b;
			MAY_DIE(producer);
			k++
		:: else -> break
		od;
		head = mine + BURST;
		mine = mine + BURST;
		MAY_DIE(producer)
	:: mine >= FRAMES -> break
	od;
dead:
	b = 0; k = 0; mine = 0
}

inline deliver(b)
{
	d_step {
		assert(payload[b] >= expected);
		lost = lost + payload[b] - expected;
		expected = payload[b] + 1
	}
}

proctype consumer()
{
	byte b, k, seen, n, mine = tail;
	byte got[SLOTS]; /* its private copy of the burst */
	do
	:: mine < head ->
		seen = head;
#ifdef TAIL_FIRST
		tail = seen;
		MAY_DIE(consumer);
#endif
		k = mine;
		n = 0;
		do
		:: k < seen ->
			b = slot[k % SLOTS];
			if
#ifdef USE_FIRST
			:: NAMES(b, k) ->
				deliver(b);
				MAY_DIE(consumer);
				WORD(b, BY_CONSUMER, 0);
				got[n] = b;
				n++
#else
			:: atomic { NAMES(b, k) -> WORD(b, BY_CONSUMER, 0); got[n] = b; n++ }
#endif
			:: else /* reclaimed since: skip it */
			fi;
			MAY_DIE(consumer);
			k++
		:: else -> break
		od;
#ifndef TAIL_FIRST
		tail = seen;
#endif
		mine = seen;
		MAY_DIE(consumer);
		k = 0;
		do
		:: k < n ->
			assert(state[got[k]] == BY_CONSUMER);
#ifndef USE_FIRST
			deliver(got[k]);
#endif
			MAY_DIE(consumer);
			assert(state[got[k]] == BY_CONSUMER);
			WORD(got[k], FREE, 0);
			MAY_DIE(consumer);
			k++
		:: else -> break
		od
	:: mine >= FRAMES -> break
	od;
dead:
	b = 0; k = 0; seen = 0; mine = 0; n = 0
}

/* Words that say "in the lane" but were never published, and all that the dead held. The consumer may be at work. */
inline reclaim_lane()
{
	from = tail;
	b = 0;
	do
	:: b < BUFS ->
		d_step { s = state[b]; p = position[b] } /* the word, read once */
#ifdef WORD_THEN_TAIL
		from = tail;
#endif
		if
		:: s != INFLIGHT
		:: s == INFLIGHT && p >= from && p < head && slot[p % SLOTS] == b
		:: else -> WORD(b, FREE, 0)
		fi;
		b++
	:: else -> break
	od
}

inline reclaim_hands(who)
{
	b = 0;
	do
	:: b < BUFS ->
		if
		:: state[b] == who -> WORD(b, FREE, 0)
		:: else
		fi;
		b++
	:: else -> break
	od
}

active proctype heir()
{
	byte b, s, p, from;
	run producer();
	run consumer();
end:
	do
	:: producer_dead ->
		reclaim_lane();
		reclaim_hands(BY_PRODUCER);
		producer_dead = false;
		run producer()
	:: consumer_dead ->
		reclaim_hands(BY_CONSUMER);
		consumer_dead = false;
		run consumer()
	od
}

active proctype judge()
{
end:
	timeout ->
	assert(head == FRAMES && tail == FRAMES);
	assert(state[0] == FREE && state[1] == FREE && state[2] == FREE);
	lost = lost + FRAMES - expected;
	assert(lost <= BURST && (lost == 0 || consumer_deaths))
}
