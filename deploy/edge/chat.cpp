// Answers one prompt with an unpacked bundle, in C++, with nothing but onnxruntime-genai's C API.
//
//   maas-edge unpack smollm2.maas bundle
//   deploy/edge/build.sh chat
//   ./chat bundle "What is the capital of France?"
//
// The declarations are those of the library's ort_genai_c.h (0.18), which its Python wheel does not
// bring; with the library's own package, include that header instead.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

extern "C" {
struct OgaResult;
struct OgaModel;
struct OgaTokenizer;
struct OgaTokenizerStream;
struct OgaSequences;
struct OgaGeneratorParams;
struct OgaGenerator;
const char* OgaResultGetError(const OgaResult*);
void OgaDestroyResult(OgaResult*);
OgaResult* OgaCreateModel(const char* path, OgaModel**);
void OgaDestroyModel(OgaModel*);
OgaResult* OgaCreateTokenizer(const OgaModel*, OgaTokenizer**);
void OgaDestroyTokenizer(OgaTokenizer*);
OgaResult* OgaTokenizerApplyChatTemplate(const OgaTokenizer*, const char* chat_template,
                                         const char* messages, const char* tools,
                                         bool add_generation_prompt, const char** out);
void OgaDestroyString(const char*);
OgaResult* OgaCreateSequences(OgaSequences**);
void OgaDestroySequences(OgaSequences*);
OgaResult* OgaTokenizerEncode(const OgaTokenizer*, const char* text, OgaSequences*);
OgaResult* OgaCreateTokenizerStream(const OgaTokenizer*, OgaTokenizerStream**);
void OgaDestroyTokenizerStream(OgaTokenizerStream*);
OgaResult* OgaTokenizerStreamDecode(OgaTokenizerStream*, int32_t token, const char** out);
OgaResult* OgaCreateGeneratorParams(const OgaModel*, OgaGeneratorParams**);
void OgaDestroyGeneratorParams(OgaGeneratorParams*);
OgaResult* OgaGeneratorParamsSetSearchNumber(OgaGeneratorParams*, const char* name, double value);
OgaResult* OgaCreateGenerator(const OgaModel*, const OgaGeneratorParams*, OgaGenerator**);
void OgaDestroyGenerator(OgaGenerator*);
OgaResult* OgaGenerator_AppendTokenSequences(OgaGenerator*, const OgaSequences*);
bool OgaGenerator_IsDone(OgaGenerator*);
OgaResult* OgaGenerator_GenerateNextToken(OgaGenerator*);
OgaResult* OgaGenerator_GetNextTokens(const OgaGenerator*, const int32_t** out, size_t* count);
}

namespace {

void Check(OgaResult* result) {
  if (result == nullptr) return;
  std::fprintf(stderr, "chat: %s\n", OgaResultGetError(result));
  OgaDestroyResult(result);
  std::exit(1);
}

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// Calls what creates a T, and hands over whose it is.
template <typename T, typename Create>
Owned<T> Make(Create create, void (*destroy)(T*)) {
  T* made = nullptr;
  Check(create(&made));
  return Owned<T>(made, destroy);
}

std::string Quoted(const char* text) {
  std::string out = "\"";
  for (const char* c = text; *c; ++c) {
    if (*c == '"' || *c == '\\') out += '\\';
    if (*c == '\n') {
      out += "\\n";
    } else {
      out += *c;
    }
  }
  return out + "\"";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: chat FOLDER PROMPT\n");
    return 2;
  }
  auto model = Make<OgaModel>([&](OgaModel** out) { return OgaCreateModel(argv[1], out); },
                              OgaDestroyModel);
  auto tokenizer = Make<OgaTokenizer>(
      [&](OgaTokenizer** out) { return OgaCreateTokenizer(model.get(), out); }, OgaDestroyTokenizer);
  auto stream = Make<OgaTokenizerStream>(
      [&](OgaTokenizerStream** out) { return OgaCreateTokenizerStream(tokenizer.get(), out); },
      OgaDestroyTokenizerStream);
  const std::string messages = "[{\"role\": \"user\", \"content\": " + Quoted(argv[2]) + "}]";
  const char* prompt = nullptr;
  Check(OgaTokenizerApplyChatTemplate(tokenizer.get(), nullptr, messages.c_str(), nullptr, true,
                                      &prompt));
  auto tokens = Make<OgaSequences>(OgaCreateSequences, OgaDestroySequences);
  Check(OgaTokenizerEncode(tokenizer.get(), prompt, tokens.get()));
  OgaDestroyString(prompt);
  auto params = Make<OgaGeneratorParams>(
      [&](OgaGeneratorParams** out) { return OgaCreateGeneratorParams(model.get(), out); },
      OgaDestroyGeneratorParams);
  Check(OgaGeneratorParamsSetSearchNumber(params.get(), "max_length", 512));
  auto generator = Make<OgaGenerator>(
      [&](OgaGenerator** out) { return OgaCreateGenerator(model.get(), params.get(), out); },
      OgaDestroyGenerator);
  Check(OgaGenerator_AppendTokenSequences(generator.get(), tokens.get()));
  while (!OgaGenerator_IsDone(generator.get())) {
    Check(OgaGenerator_GenerateNextToken(generator.get()));
    const int32_t* next = nullptr;
    size_t count = 0;
    Check(OgaGenerator_GetNextTokens(generator.get(), &next, &count));
    const char* piece = nullptr;
    Check(OgaTokenizerStreamDecode(stream.get(), next[0], &piece));
    std::fputs(piece, stdout);
    std::fflush(stdout);
  }
  std::puts("");
  return 0;
}
