/* The doorbell (shm/doorbell.h) on a machine whose stores wait in a buffer (x86; Arm is weaker still): a producer publishes
 * and asks, a consumer arms and looks again before it sleeps. The producer may be killed after every step. The controller
 * rings after a death.
 *
 * Forbidden: everybody is at rest, something is published, the consumer sleeps. (Sleep has no time limit here.)
 * Must fail:  -DNO_FENCE_CONSUMER, -DNO_FENCE_PRODUCER, -DNO_LOOK (sleep without looking again), -DNO_CONTROLLER */

#define ITEMS 2

byte head, need, eventfd;             /* memory */
byte head_waits = 255, need_waits = 255; /* each side's store buffer: its one word, 255 = empty */
byte taken;
bool killed;

#define DRAIN_HEAD atomic { head_waits != 255 -> head = head_waits; head_waits = 255 }
#define DRAIN_NEED atomic { need_waits != 255 -> need = need_waits; need_waits = 255 }
#define STORE(buffer, value) atomic { buffer == 255 -> buffer = value }
#define FENCE(buffer) (buffer == 255)

/* The interrupt that kills drains the store buffer, so nothing of the dead arrives after the news of the death. */
#define MAY_DIE if :: skip :: atomic { head_waits == 255 -> killed = true; goto dead } fi

active proctype machine()
{
end:
	do
	:: DRAIN_HEAD
	:: DRAIN_NEED
	od
}

active proctype producer()
{
	byte i = 1;
	bool asked;
	do
	:: i <= ITEMS ->
		STORE(head_waits, i);
		MAY_DIE;
#ifndef NO_FENCE_PRODUCER
		FENCE(head_waits);
#endif
		MAY_DIE;
		asked = need;
		MAY_DIE;
		if
		:: asked -> eventfd = 1
		:: else
		fi;
		MAY_DIE;
		i++
	:: else -> break
	od;
dead:
	skip
}

active proctype controller()
{
end:
	killed;
#ifndef NO_CONTROLLER
	eventfd = 1
#endif
}

active proctype consumer()
{
	byte seen;
	do
	:: seen = head;
		if
		:: seen != taken -> taken = seen
		:: else ->
			STORE(need_waits, 1);
#ifndef NO_FENCE_CONSUMER
			FENCE(need_waits);
#endif
#ifndef NO_LOOK
			seen = head;
#endif
			if
			:: seen != taken
			:: else ->
end_asleep:			atomic { eventfd == 1 -> eventfd = 0 }
			fi;
			STORE(need_waits, 0)
		fi
	od
}

active proctype judge()
{
end:
	timeout -> assert(head == taken)
}
