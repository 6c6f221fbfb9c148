#!/bin/sh
# Entry point of a container: the models that the command names are checked, then the gate becomes the command (same process, same signals).
#     ENTRYPOINT ["/gate-entrypoint.sh"]
#     CMD ["vllm", "serve", "/models/llama"]                            vLLM
#     CMD ["text-generation-launcher", "--model-id", "/models/llama"]   TGI
#     CMD ["llama-server", "-m", "/models/llama.gguf"]                  llama.cpp
exec bitward gate ${BITWARD_GATE_OPTIONS:---policy enforce} -- "$@"
