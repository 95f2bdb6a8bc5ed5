/* A substitute for libnuma.so.1 on machines without it, built by setup.sh.
 *
 * vLLM's CPU engine links against libnuma and uses it only if numa_available() says that the machine has NUMA nodes to
 * choose from. This one says that it has none. The other functions exist for the linker and are never called. */

int numa_available(void) { return -1; }
int numa_migrate_pages(void) { return -1; }
void numa_set_strict(void) {}

void numa_bitmask_free(void) {}
void *numa_get_mems_allowed(void) { return 0; }
void *numa_parse_nodestring(void) { return 0; }
void numa_set_interleave_mask(void) {}
void numa_set_membind(void) {}
